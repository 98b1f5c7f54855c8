"""The stream's promises on real shards: the same batches for any number of processes and readers, and restarts."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys

import pytest
import torch
import webdataset
from processes import together

import kdstream as kd
from kdstream.errors import UserError
from kdstream.stream.stream import Stream

CHAIN = "decode | augment(cifar, pad=2) | normalize"


def one_of(digits, folder, workers):
    """Leaves in <rank>.json what a process sees: its batches of two epochs, and the samples that it evaluates."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    stream = Stream(digits / "train", 50, seed=3, workers=workers) | CHAIN
    assert (stream.rank, stream.world) == (rank, torch.distributed.get_world_size())
    seen = [facts(batch) for _ in range(2) for batch in stream]
    val = Stream(digits / "val", 32, train=False, workers=workers) | "decode"
    evaluated = [i for batch in val for i in batch.index.tolist()]
    (folder / f"{rank}.json").write_text(json.dumps([seen, evaluated]))


def facts(batch):
    return [batch.index.tolist(), batch.label.tolist(), batch.image.double().sum((1, 2, 3)).tolist()]


def spread(digits, folder, world, workers):
    """What the ranks of one world see, in real processes: global batches of two epochs, and the evaluated samples."""
    together(world, one_of, digits, folder, workers)
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    assert len({len(seen) for seen, _ in ranks}) == 1  # every rank the same number of batches
    steps = zip(*[seen for seen, _ in ranks], strict=True)
    batches = [[list(itertools.chain(*parts)) for parts in zip(*slices, strict=True)] for slices in steps]
    return batches, [evaluated for _, evaluated in ranks]


def test_world_size_and_workers_do_not_change_the_global_batches(digits, tmp_path):
    stream = Stream(digits / "train", 50, seed=3) | CHAIN
    expected = [facts(batch) for _ in range(2) for batch in stream]
    assert len(expected) == 10
    for epoch in (expected[:5], expected[5:]):
        assert sorted(i for index, _, _ in epoch for i in index) == list(range(240))
    assert expected[0] != expected[5]
    for world, workers in [(2, 1), (3, 0), (1, 3)]:
        folder = tmp_path / f"{world}-{workers}"
        folder.mkdir()
        batches, evaluated = spread(digits, folder, world, workers)
        assert batches == expected
        assert sorted(itertools.chain(*evaluated)) == list(range(240))


def test_a_script_ends_without_waiting_for_readers_that_wait_for_more(digits):
    # torch by itself waits 5 seconds at the end for each reader, none of which knows that nothing more is asked of it.
    script = (
        "import sys\n"
        "from multiprocessing import process, synchronize\n"
        "from kdstream.stream.stream import Stream\n"
        "stream = Stream(sys.argv[1] + '/train', 8, workers=2, cache='off') | 'decode'\n"
        "batches = iter(stream)\n"
        "next(batches)\n"
        "def tell(owner, name, what):\n"
        "    method = getattr(owner, name)\n"
        "    def telling(*arguments, **settings):\n"
        "        print(what, flush=True)\n"
        "        return method(*arguments, **settings)\n"
        "    setattr(owner, name, telling)\n"
        "tell(synchronize.Event, 'set', 'told to end')\n"
        "tell(process.BaseProcess, 'join', 'waited for')\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, digits], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "told to end\n"
            rest, _ = process.communicate(timeout=120)
            assert process.returncode == 0
            assert "waited for" in rest.splitlines()
        finally:
            process.kill()


def digest(batch):
    return hashlib.sha256(batch.image.numpy().tobytes() + batch.index.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restarted_stream_goes_on_where_it_was(digits, workers):
    def make():
        return Stream(digits / "train", 32, seed=1, workers=workers) | CHAIN

    stream = make()
    whole = [digest(b) for _ in range(3) for b in stream]
    assert stream.state_dict() == {"epoch": 3, "step": 0}
    for stop in (0, 5, 8, 11, 23):
        stream, seen = make(), []
        while len(seen) < stop:
            for batch in stream:
                seen.append(digest(batch))
                if len(seen) == stop:
                    break
        state = stream.state_dict()
        assert set(state) == {"epoch", "step"}
        new = make()
        new.load_state_dict(json.loads(json.dumps(state)))
        while len(seen) < len(whole):
            seen += [digest(batch) for batch in new]
        assert seen == whole


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("train", [True, False])
def test_a_pass_that_was_left_begins_anew(digits, workers, train):
    def make():
        return Stream(digits / "train", 50, seed=1, workers=workers, train=train) | CHAIN

    stream = make()
    first, second = [[digest(batch) for batch in stream] for _ in range(2)]
    assert len(first) == len(second) == 5
    stream = make()
    for _ in range(2):  # looked at, as in the README
        for batch in stream:
            assert digest(batch) == first[0]
            break
        assert stream.state_dict() == {"epoch": 0, "step": 1}
    assert [digest(batch) for batch in stream] == first
    assert stream.state_dict() == {"epoch": 1, "step": 0}
    for step, batch in enumerate(stream):
        assert digest(batch) == second[step]
        if step == 2:
            break
    stream.load_state_dict(stream.state_dict())
    assert [digest(batch) for batch in stream] == second[3:]
    stream = make()
    # A pass that is left after its last batch has shown all of them: what follows is the next epoch.
    assert [digest(batch) for _, batch in zip(range(5), stream, strict=False)] == first
    assert [digest(batch) for batch in stream] == second


@pytest.mark.parametrize("workers", [0, 2])
def test_several_passes_at_a_time(digits, workers):
    stream = Stream(digits / "train", 50, seed=1, workers=workers) | CHAIN
    first, second = [[digest(batch) for batch in stream] for _ in range(2)]
    stream.load_state_dict({"epoch": 0, "step": 0})
    pairs = list(zip(stream, stream, strict=False))
    assert [digest(batch) for batch, _ in pairs] == [digest(batch) for _, batch in pairs] == first
    assert [digest(batch) for batch in stream] == second
    stream.load_state_dict({"epoch": 0, "step": 0})
    kept = iter(stream)
    seen = [digest(next(kept)), digest(next(kept))]
    assert [digest(batch) for batch in stream] == first  # beside the one that is kept
    assert [digest(batch) for batch in stream] == second
    assert seen + [digest(batch) for batch in kept] == first
    assert stream.state_dict() == {"epoch": 2, "step": 0}
    kept = iter(stream)
    next(kept)
    stream.load_state_dict({"epoch": 0, "step": 3})
    assert len(list(kept)) == 4  # of epoch 2, from before the state was loaded
    assert stream.state_dict() == {"epoch": 0, "step": 3}
    assert [digest(batch) for batch in stream] == first[3:]


def test_evaluation_goes_on_from_a_state_on_every_rank(digits):
    for rank in range(3):
        place = {"rank": rank, "world": 3, "train": False}
        whole = [digest(batch) for batch in Stream(digits / "train", 50, **place) | "decode"]
        assert len(whole) == (2, 2, 1)[rank]
        stream = Stream(digits / "train", 50, **place) | "decode"
        next(iter(stream))
        stream.load_state_dict(stream.state_dict())
        assert [digest(batch) for batch in stream] == whole[1:]


@pytest.mark.parametrize("workers", [0, 1])
def test_more_ranks_than_batches_to_evaluate(digits, workers):
    place = {"world": 9, "train": False, "workers": workers}
    streams = [Stream(digits / "train", 100, rank=rank, **place) | "decode" for rank in range(9)]
    assert [len(stream) for stream in streams] == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert sorted(i for stream in streams for batch in stream for i in batch.index.tolist()) == list(range(240))


def test_own_stages_in_python_on_samples_and_batches(digits):
    @kd.stage
    def odd_only(samples):
        for sample in samples:
            if sample["label"] % 2:
                yield sample

    @kd.batch_stage
    def invert(batches, p=0.1):
        for batch in batches:
            chosen = (kd.uniform(batch.rng_key, 1, "invert") < p)[:, :, None, None]
            yield batch.map_views(lambda images, chosen=chosen: torch.where(chosen, 255 - images, images))

    chain = Stream(digits / "train", 60) | kd.decode() | odd_only | kd.augment("cifar") | invert(p=1.0)
    batch = next(iter(chain))
    assert set((batch.label % 2).tolist()) == {1}
    assert batch.image.double().mean() > 128  # white ground now
    plain = next(iter(Stream(digits / "train", 60) | "decode" | odd_only | kd.augment("cifar")))
    assert batch.image.equal(255 - plain.image)


def test_webdataset_filters_are_stages(digits):
    chain = Stream(digits / "train", 40) | webdataset.filters.select(lambda s: s["cls"] != b"3") | kd.decode
    chain = chain | webdataset.filters.map_dict(image=lambda image: image.flip(-1))
    labels = [label for batch in chain for label in batch.label.tolist()]
    assert 3 not in labels
    assert len(labels) == int((chain.dataset.labels != 3).sum())


def test_own_stages_may_be_called_as_ours_are(digits):
    @kd.batch_stage
    def normalize(batches):
        for batch in batches:
            yield batch.map_views(lambda images: images // 2)

    given = {
        "teacher": lambda images: kd.Outputs(images.mean((2, 3))),
        "teacher_mean": (0,) * 3,
        "teacher_std": (1,) * 3,
    }
    stream = Stream(digits / "train", 16, given=given) | "decode" | normalize
    batch = next(iter(stream | kd.teacher | kd.normalize))
    half = next(iter(stream))
    torch.testing.assert_close(batch.teacher.logits, half.image.float().mean((2, 3)) / 255)
    with pytest.raises(UserError, match="normalize must come after teacher"):
        stream | kd.normalize | kd.teacher


def test_stages_get_what_the_stream_knows(digits):
    @kd.batch_stage
    def curious(batches, seed=kd.given, num_classes=kd.given, extra=kd.given):
        for batch in batches:
            assert (seed, num_classes, extra) == (7, 10, "e")
            yield batch

    assert next(iter(Stream(digits / "train", 8, seed=7, given={"extra": "e"}) | "decode" | curious)) is not None


def test_the_teacher_in_a_stream(digits):
    class Net(torch.nn.Module):
        def forward(self, images):
            return kd.Outputs(images.mean((1, 2, 3))[:, None] * torch.arange(10.0))

    given = {"teacher": Net(), "teacher_mean": (0.5,) * 3, "teacher_std": (0.5,) * 3}
    stream = (
        Stream(digits / "train", 16, given=given)
        | "decode | augment(cifar) | coded(hkl, delta=25) | teacher | normalize"
    )
    for batch in stream:
        assert batch.teacher.logits.shape == (len(batch), 10)
        assert set(batch.quality.tolist()) <= {-1, 0, 25, 50, 75, 100}
        assert batch.image.dtype == torch.float32


@pytest.mark.parametrize("workers", [0, 1])
def test_mistakes_arrive_as_one_line_also_from_readers(digits, workers):
    def first(chain):
        return next(iter(Stream(digits / "train", 8, workers=workers) | chain))

    with pytest.raises(UserError, match="begin the chain with decode"):
        first("normalize")
    with pytest.raises(UserError, match="dropped all of its samples"):
        first(kd.stage(lambda samples: iter(())))
    mixed = kd.stage(lambda samples: ({**s, "image": torch.zeros(3, 8 + s["index"] % 2, 8)} for s in samples))
    with pytest.raises(UserError, match=r"different sizes \(8x8 and 9x8\).*augment\(inception, SIZE\)"):
        first(kd.decode | mixed)


def test_mistakes_of_composition(digits):
    with pytest.raises(UserError, match="normalize must come after teacher"):
        Stream(digits / "train", 8) | "decode | normalize | teacher"
    with pytest.raises(UserError, match=r"needs 'model'.*give the stream teacher"):
        next(iter(Stream(digits / "train", 8) | "decode | teacher"))
    with pytest.raises(UserError, match="too small for 9 processes"):
        Stream(digits / "train", 16, rank=0, world=9)
