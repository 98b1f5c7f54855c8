"""Order of shards: nothing twice, as many batches for every process, the same ones for any readers and restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tars import image_bytes, write_tar

from kdstream.errors import UserError
from kdstream.stream.decode import decode
from kdstream.stream.sequential import SequentialPlan, Unknown
from kdstream.stream.stream import Stream

BROKEN = (5, 40)
"""Samples of ``tars`` whose image cannot be decoded."""


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> Path:
    """Ten shards of 4 to 13 samples, 85 in all, numbered through by their class."""
    folder = tmp_path_factory.mktemp("tars") / "birds"
    number = 0
    for shard in range(10):
        members: list[tuple[str, bytes | str]] = []
        for _ in range(4 + shard):
            image = image_bytes(number)
            members.append((f"{number:03d}.jpg", image[:60] if number in BROKEN else image))
            members.append((f"{number:03d}.cls", str(number).encode()))
            number += 1
        write_tar(folder / f"birds-{shard}.tar", members)
    return folder


def sequential(place: Path | str, batch_size: int = 8, **settings) -> Stream:
    return Stream(place, batch_size, 3, **{"order": "sequential", "on_error": "skip", **settings}) | decode


def shown(stream: Stream) -> list[list[int]]:
    return [batch.label.tolist() for batch in stream]


@pytest.mark.parametrize("world", [1, 3])
def test_nothing_twice_and_as_many_batches_for_every_process(tars, world):
    streams = [sequential(tars, rank=rank, world=world, on_error="stop") for rank in range(world)]
    plain = [Stream(stream.dataset, 8, 3, order="sequential", rank=stream.rank, world=world) for stream in streams]
    seen = []
    for stream in plain:
        reader = stream._reader(stream.chain, None)
        assert isinstance(stream.plan, SequentialPlan)
        batches = [[one["index"] for one in reader.raw(0, step)] for step in range(stream.steps)]
        assert {len(batch) for batch in batches} == {stream.plan.slice(stream.rank)}
        seen += [number for batch in batches for number in batch]
    assert len(set(seen)) == len(seen) == 8 * plain[0].steps
    assert len({stream.steps for stream in plain}) == 1
    assert f"{85 - len(seen)} of 85 samples" in plain[0].notes[0]
    assert len(seen) > (70 if world == 1 else 40)


def test_the_same_batches_whatever_the_readers_and_wherever_it_goes_on(tars):
    stream = sequential(tars)
    epochs = [shown(stream), shown(stream)]
    assert epochs[0] != epochs[1]
    state = None
    for step, _ in enumerate(stream := sequential(tars, workers=2)):
        if step == 4:
            state = stream.state_dict()
            break
    assert state == {"epoch": 0, "step": 5, "world": 1}
    again = sequential(tars)
    again.load_state_dict(state)
    assert shown(again) == epochs[0][5:]
    assert shown(again) == epochs[1]
    with pytest.raises(UserError, match="this state is of 1 processes, here are 2"):
        sequential(tars, rank=0, world=2).load_state_dict(state)


def test_the_next_image_of_its_batch_stands_in_for_a_broken_one(tars, tmp_path):
    stream = sequential(tars, skipped_file=tmp_path / "skipped.jsonl")
    for batch in stream:
        assert not set(batch.label.tolist()) & set(BROKEN)
        assert len(batch) == 8
        doubled = 8 - len(set(batch.label.tolist()))
        if doubled:  # the same image, in views of their own
            assert len(set(batch.rng_key.tolist())) == 8
    skipped = {int(one["key"]) for one in stream.skipped}
    assert skipped
    assert skipped <= set(BROKEN)
    with pytest.raises(UserError, match="more than on_error=skip"):
        shown(sequential(tars, on_error="skip(0.001)"))


def test_shards_by_name_are_read_to_the_end(tars):
    stream = sequential(f"{tars}/birds-{{0..9}}.tar", workers=2)
    batches = list(stream)
    labels = torch.cat([batch.label for batch in batches]).tolist()
    assert len(batches) == 10
    assert len(set(labels)) >= 80 - len(BROKEN)
    with pytest.raises(Unknown, match="how many batches"):
        _ = stream.steps
    with pytest.raises(UserError, match=r"start torch\.distributed first"):
        shown(sequential(f"{tars}/birds-{{0..9}}.tar", rank=0, world=2))
    with pytest.raises(UserError, match="a plan needs a set with an index"):
        shown(Stream(f"{tars}/birds-{{0..9}}.tar", 8, order="sequential") | "decode | coded(hkl, plan=auto)")


def test_lines_of_shards_cost_few_batches():
    names = tuple(f"{number:03d}.tar" for number in range(64))
    plan = SequentialPlan(6400, 20, names=names, counts=(100,) * 64, world=2).with_lanes()
    assert (plan.lanes, plan.length) == (8, 320)
    few = SequentialPlan(500, 20, names=names[:5], counts=(100,) * 5, world=1).with_lanes()
    assert (few.lanes, few.length) == (1, 25)
    dealt = [name for rank in range(2) for lane in range(8) for name in plan.of_lane(rank, lane)]
    assert sorted(dealt) == sorted(names)
    assert [few.slice(0), SequentialPlan(500, 6, group=2, world=2).slice(0)] == [20, 2]


def test_what_cannot_be_dealt_out_is_one_line(tars):
    with pytest.raises(UserError, match="has 10 shards, which cannot be dealt out to 11 processes"):
        sequential(tars, 32, rank=0, world=11)
    with pytest.raises(UserError, match="do not make one batch of 90"):
        sequential(tars, 90)
    with pytest.raises(UserError, match="is of training"):
        Stream(tars, 8, train=False, order="sequential")
    with pytest.raises(UserError, match="shuffled or sequential"):
        Stream(tars, 8, order="random")
