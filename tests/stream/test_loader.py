"""Readers that cannot go on are told of in one line, soon; never waited for."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tars import image_bytes, write_tar

import kdstream as kd
from kdstream.data.faults import Faults
from kdstream.errors import UserError
from kdstream.stream import loader
from kdstream.stream.loader import ReaderLost
from kdstream.stream.plan import Plan
from kdstream.stream.stage import Chain
from kdstream.stream.stream import Stream

SHORT = r"/dev/shm.*docker run --shm-size.*workers=0"


def stream_of(digits, stage, **settings):
    return Stream(digits / "train", 24, **{"workers": 2, **settings}) | kd.decode() | stage


def in_a_reader():
    return torch.utils.data.get_worker_info() is not None


def ending(how):
    """A stage that ends its reader at the 60th sample."""

    def stage(samples):
        for sample in samples:
            if sample["index"] == 60 and in_a_reader():
                how()
            yield sample

    return kd.stage(stage)


@pytest.mark.parametrize(
    "how", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(3), lambda: os._exit(0)]
)
def test_a_reader_that_was_ended(digits, how):
    stream = stream_of(digits, ending(how))
    with pytest.raises(ReaderLost, match=r"^a reader process was ended.*memory runs out.*workers=0"):
        list(stream)
    with pytest.raises(ReaderLost):  # new readers, the same end
        list(stream)


def test_a_reader_that_the_bus_ended(digits):
    with pytest.raises(ReaderLost, match=SHORT):
        list(stream_of(digits, ending(lambda: os.kill(os.getpid(), signal.SIGBUS))))


def test_the_end_of_a_reader_is_noticed_in_the_middle_of_a_step(digits):
    def after_some_batches():
        with loader.lost_readers_told():
            for batch in stream_of(digits, kd.stage(lambda samples: samples)):
                assert len(batch)
                for reader in torch.multiprocessing.active_children():
                    reader.kill()
                torch.multiprocessing.active_children()[0].join(60)  # torch tells of it here

    with pytest.raises(ReaderLost, match="was ended"):
        after_some_batches()


def test_too_little_shared_memory_is_said_before_a_reader_starts(digits, monkeypatch):
    batch = 24 * 3 * 16 * 16
    images = kd.stage(lambda samples: samples)
    for free, ahead in [(5 * batch, 2), (5 * batch - 1, 1), (3 * batch, 1)]:
        monkeypatch.setattr(loader, "_shared_memory", lambda free=free: (free, 64 << 20))
        stream = stream_of(digits, images)
        assert stream._open().check(0, [0]) == ahead
        assert sum(map(len, stream)) == 240
    monkeypatch.setattr(loader, "_shared_memory", lambda: (3 * batch - 1, 64 << 20))
    with pytest.raises(UserError, match=SHORT):
        next(iter(stream_of(digits, images)))
    with pytest.raises(UserError, match=SHORT):
        stream_of(digits, images).open()
    assert sum(map(len, stream_of(digits, images, workers=0))) == 240
    coded = stream_of(digits, kd.coded("hkl", delta=50) | kd.augment("inception", 16))
    assert stream_of(digits, images, workers=0)._open().check(0, [0]) is None
    with pytest.raises(UserError, match=r"for batches of 0[.]1 MiB"):  # the image and three versions
        coded.open()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(loader, "_shared_memory", lambda: (6 * batch - 1, 64 << 20))
    with pytest.raises(UserError, match=SHORT):
        stream_of(digits, images).open()


def test_shared_memory_that_runs_out_later(digits):
    def no_more():
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    with pytest.raises(UserError, match=rf"{SHORT}"):
        list(stream_of(digits, ending(no_more)))


SMALL = """
import sys
import kdstream as kd
import torch

def filling(samples):
    if torch.utils.data.get_worker_info() is not None:
        with open("/dev/shm/taken", "wb") as file:
            file.write(bytes(600_000))
    yield from samples

for stages in (), (kd.stage(filling),):
    stream = kd.Stream(sys.argv[1] + "/train", 240, workers=1) | kd.decode()
    for stage in stages:
        stream = stream | stage
    try:
        print(sum(len(batch) for _ in range(3) for batch in stream))
    except kd.errors.UserError as error:
        print(error)
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="only root may mount another /dev/shm",
)
def test_a_really_small_shared_memory(digits):
    mount = 'mount -t tmpfs -o size=700k tmpfs /dev/shm && exec $0 -c "$1" $2'
    command = ["unshare", "-m", "sh", "-c", mount, sys.executable, SMALL, digits]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    fits, does_not = done.stdout.splitlines()
    assert fits == "720"
    assert "a batch of 0.2 MiB does not fit" in does_not
    assert "docker run --shm-size" in does_not


@pytest.mark.parametrize("workers", [0, 1])
def test_any_exception_of_a_stage_arrives(digits, workers):
    class Local(Exception):
        """Of a class that no other process can find."""

    def failing(kind):
        @kd.stage
        def stage(samples):
            for sample in samples:
                if in_a_reader() or not workers:
                    raise kind("on purpose")
                yield sample

        return stream_of(digits, stage, workers=workers)

    with pytest.raises(KeyError, match="on purpose"):
        next(iter(failing(KeyError)))
    with pytest.raises(RuntimeError if workers else Local, match="on purpose"):
        next(iter(failing(Local)))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """24 samples, each of its own class, in two tars; the images of 3, 4 and 17 are cut off."""
    folder = tmp_path_factory.mktemp("broken") / "train"
    for shard in range(2):
        members = []
        for number in range(12 * shard, 12 * shard + 12):
            image = image_bytes(number)
            members.append((f"{number:02d}.jpg", image[:60] if number in (3, 4, 17) else image))
            members.append((f"{number:02d}.cls", str(number).encode()))
        write_tar(folder / f"{shard}.tar", members)
    return folder


def seen(stream):
    """Epoch by epoch, batch by batch: the samples' numbers, classes and random keys."""
    return [[(b.index.tolist(), b.label.tolist(), b.rng_key.tolist()) for b in stream] for _ in range(2)]


def test_others_stand_in_for_images_that_cannot_be_decoded_the_same_for_any_readers(broken, tmp_path):
    file = tmp_path / "run" / "skipped.jsonl"

    def skipping(**settings):
        return Stream(broken, 8, 1, on_error="skip", skipped_file=file, **settings) | kd.decode()

    one = skipping()
    epochs = seen(one)
    assert seen(skipping(workers=2)) == epochs
    halves = [seen(skipping(rank=rank, world=2)) for rank in range(2)]
    for epoch, *parts in zip(epochs, *halves, strict=True):
        assert epoch == [tuple(a + b for a, b in zip(*slices, strict=True)) for slices in zip(*parts, strict=True)]
    assert [one["index"] for one in sorted(one.skipped, key=lambda one: one["index"])] == [3, 4, 17]
    assert {Path(each["shard"]).name for each in one.skipped} == {"0.tar", "1.tar"}
    plain = Stream(broken, 8, 1)
    for epoch in range(2):
        for step, (index, label, _) in enumerate(epochs[epoch]):
            wanted = plain.plan.batch(epoch, step).tolist()
            assert index == label
            assert not set(index) & {3, 4, 17}
            kept = [(there, found) for there, found in zip(wanted, index, strict=True) if there not in (3, 4, 17)]
            assert all(there == found for there, found in kept)
    stand_ins = {
        there: found
        for epoch in range(2)
        for step, (index, _, _) in enumerate(epochs[epoch])
        for there, found in zip(plain.plan.batch(epoch, step).tolist(), index, strict=True)
        if there in (3, 4, 17)
    }
    assert len(stand_ins) == 3  # and in both epochs the same ones


def test_more_than_may_be_skipped_and_evaluation_stop(broken, tmp_path):
    few = {"on_error": "skip(0.1)", "skipped_file": tmp_path / "skipped.jsonl"}
    with pytest.raises(UserError, match=r"^3 of 24 samples cannot be decoded, more than on_error=skip\(0\.1\) allows"):
        list(Stream(broken, 8, 1, workers=1, **few) | kd.decode())
    with pytest.raises(UserError, match=r"^cannot decode sample '03'"):
        list(Stream(broken, 8, train=False, **few) | kd.decode())
    with pytest.raises(UserError, match=r"^cannot decode sample"):
        list(Stream(broken, 8) | kd.decode())


def test_a_stand_in_may_bear_the_number_of_the_sample_that_it_stands_in_for(broken, tmp_path):
    """As coding plans, which have a place for every number, need it."""
    plan = Plan(24, 24, shuffle=False)
    faults = Faults(tmp_path / "skipped.jsonl", 1.0, 24)
    reader = loader.Reader(kd.open_shards(broken), plan, Chain() | kd.decode(), 0, 1, faults, numbered=True)
    batch = reader[0, 0]
    assert batch.index.tolist() == list(range(24))
    assert [number for number, label in enumerate(batch.label.tolist()) if label != number] == [3, 4, 17]
    assert [one["index"] for one in faults.listed()] == [3, 4, 17]
