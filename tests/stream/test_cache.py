"""A split in memory gives the batches that its shards give, bit for bit."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys

import pytest
import torch
from small_teacher import MEAN, STD, Net

import kdstream as kd
from kdstream.data.altered import PowerLaw, alter
from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.recipe import make_recipe
from kdstream.stream import cache
from kdstream.stream.cache import CacheLoader
from kdstream.stream.stream import Stream


def tensors_of(batch):
    found = []
    batch.map_tensors(lambda tensor: found.append(tensor) or tensor)
    return found


def same(batches, others):
    for one, other in zip(batches, others, strict=True):
        pairs = list(zip(tensors_of(one), tensors_of(other), strict=True))
        assert len(pairs) >= 4
        for a, b in pairs:
            assert (a.dtype, a.stride()) == (b.dtype, b.stride())
            assert a.equal(b)
    return True


def both(shards, chain, size=50, **settings):
    """The stream from shards, and from memory."""
    kept = settings.pop("cache", "auto")
    streams = [Stream(shards, size, seed=3, cache=how, **settings) | chain for how in ("off", kept)]
    for stream in streams:
        stream.open()
    assert isinstance(streams[1]._loader, CacheLoader), streams[1].note
    assert not isinstance(streams[0]._loader, CacheLoader)
    return streams


CHAINS = ["decode", "decode | augment(cifar, pad=2) | normalize", "decode | augment(eval, 12)", "decode | mixup(1.0)"]


@pytest.mark.parametrize("train", [True, False])
def test_the_same_batches_on_any_number_of_processes(digits, train):
    shards = open_shards(digits / "train")
    for chain in CHAINS[: 4 if train else 3]:
        for world in (1, 3):
            for rank in range(world):
                stream, kept = both(shards, chain, train=train, rank=rank, world=world)
                assert all(same(stream, kept) for _ in range(2))
                assert stream.state_dict() == kept.state_dict()
    assert len(shards.decoded) == 1  # the last chain's


def test_the_same_batches_after_a_restart(digits):
    stream, kept = both(digits / "train", CHAINS[1], size=32)
    whole = [batch for _ in range(3) for batch in stream]
    for stop in (1, 7, 8, 13):
        first = Stream(kept.dataset, 32, seed=3) | CHAINS[1]
        batches = iter(batch for _ in range(3) for batch in first)
        seen = [next(batches) for _ in range(stop)]
        resumed = Stream(kept.dataset, 32, seed=3, cache="host") | CHAINS[1]
        resumed.load_state_dict(first.state_dict())
        while len(seen) < len(whole):
            seen += list(resumed)
        assert same(whole, seen)


@pytest.mark.parametrize(
    "chain",
    [
        "decode | coded(hkl, delta=50, plan=auto) | augment(cifar, pad=2) | teacher | normalize",
        "decode | augment(cifar, pad=2) | coded(hkl, delta=50, plan=auto) | teacher",
        "decode | coded(random(20, 90)) | augment(cifar, pad=2)",
    ],
)
def test_the_same_batches_of_a_coded_teacher(digits, tmp_path, chain):
    shutil.copytree(digits, tmp_path / "digits")
    given = {"teacher": Net(), "teacher_mean": MEAN, "teacher_std": STD, "teacher_hash": "small"}
    stream, kept = both(tmp_path / "digits/train", chain, given=given)
    plans = list((tmp_path / "digits").glob("*.bin"))
    assert same(stream, kept)
    if "plan" in chain:  # one made from memory has the same bytes
        (plan,) = plans
        data = plan.read_bytes()
        plan.unlink()
        again = Stream(kept.dataset, 50, seed=3, given=given) | chain
        again.open()
        assert plan.read_bytes() == data


def test_labels_and_samples_that_were_changed(digits):
    shards = alter(open_shards(digits / "train"), 0.4, PowerLaw(0.5, 20, 5), seed=1)
    stream, kept = both(shards, CHAINS[1])
    assert same(stream, kept)
    assert (shards.true_labels != shards.labels).any()
    plain, of_base = both(alter(open_shards(digits / "train"), 0.4), "decode")
    assert same(plain, of_base)


def test_decoded_by_readers_who_then_go(digits, monkeypatch):
    monkeypatch.setattr(cache, "BRIEF", 0)
    monkeypatch.setattr(cache, "CHUNK", 40_000)
    chunks = []
    stream = Stream(digits / "train", 50, seed=3, cache="off") | "decode"
    kept = Stream(digits / "train", 50, seed=3, workers=2) | "decode"
    kept.open(lambda: chunks.append(len(torch.multiprocessing.active_children())))
    assert len(chunks) == 5
    assert chunks[0] == 2
    assert not torch.multiprocessing.active_children()
    assert same(stream, kept)


def test_a_device_and_copies(digits):
    stream, kept = both(digits / "train", "decode", cache="device", device="cpu")
    for batch in kept:
        batch.map_tensors(torch.Tensor.zero_)  # what a stage may do to a batch of its own
    kept.load_state_dict({"epoch": 0, "step": 0})
    assert same(stream, kept)
    twin = Stream(kept.dataset, 20) | "decode"
    twin.open()
    assert twin._loader.kept is kept._loader.kept  # one copy for all streams of an open split


@kd.stage
def own(samples):
    yield from samples


def test_what_is_not_kept(digits, monkeypatch):
    def opened(chain, how, shards=digits / "train"):
        stream = Stream(shards, 50, cache=how) | chain
        stream.open()
        return stream

    cases = {
        "stage own works on the host and may do anything": kd.decode() | own,
        "stage random_box .* draws at random": "decode | augment(inception, 8)",
    }
    for said, chain in cases.items():
        stream = opened(chain, "auto")
        assert not isinstance(stream._loader, CacheLoader)
        for how in ("host", "device"):
            with pytest.raises(UserError, match=f"^cache={how} is not possible: {said}.*use cache=auto or cache=off$"):
                opened(chain, how)
    differing = open_shards(digits / "train")
    differing.image_size = None
    assert "differ in size" in opened("decode", "auto", differing).note
    assert opened("decode | augment(eval, 8)", "auto", differing).note.startswith(
        "cached on the host: 240 images of 8x8"
    )
    assert opened("decode", "off").note == "not cached, as cache=off says"
    with pytest.raises(UserError, match="cache is 'ram'; it is one of auto, off, host, device"):
        Stream(digits / "train", 50, cache="ram")
    size = 240 * (3 * 16 * 16 + 8)
    for free, how, kept in [(4 * size, "auto", True), (4 * size - 1, "auto", False), (size, "host", True)]:
        monkeypatch.setattr(cache, "free_memory", lambda free=free: free)
        assert isinstance(opened("decode", how)._loader, CacheLoader) is kept
    monkeypatch.setattr(cache, "free_memory", lambda: size - 1)
    with pytest.raises(UserError, match=r"cache=device is not possible: digits/train takes 0[.]2 MiB, .* free"):
        opened("decode", "device")


def test_images_of_another_size_than_the_set_says(digits):
    shards = open_shards(digits / "train")
    shards.image_size = (16, 20)
    with pytest.raises(
        UserError, match=r"sample .* has 16x16 pixels, but all images of digits/train .* 16x20: make the"
    ):
        (Stream(shards, 50) | "decode").open()
    assert not shards.decoded


def test_a_recipe_says_where():
    def kept(**settings):
        return make_recipe({"data": {"path": "x"}, "student": "resnet8", **settings}, "mine").cache

    assert (kept(), kept(cache="host"), kept(cache=False)) == ("auto", "host", "off")
    with pytest.raises(UserError, match="cache: input should be 'auto', 'off', 'host' or 'device'"):
        kept(cache="ram")


RANK = """
import hashlib, os, sys
import torch
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
from kdstream.errors import UserError
from kdstream.stream import cache
from kdstream.stream.stream import Stream
cache.CHUNK = 20_000
rank = torch.distributed.get_rank()
stream = Stream(sys.argv[1] + "/train", 50, seed=3) | "decode | augment(cifar, pad=2)"
turns = []
stream.open(lambda: turns.append(1))
assert len(turns) == 5, turns  # 10 chunks, of which each process made half
file = hashlib.sha256()
for batch in stream:
    parts = [None, None]
    torch.distributed.all_gather_object(parts, batch.image)
    file.update(torch.cat(parts).numpy().tobytes())
os.write(1, f"digest {file.hexdigest()}\\n".encode())  # at once: two processes write
image = stream._loader.kept.image
if rank == 1:
    image[17] = 99
torch.distributed.barrier()
assert (image[17] == 99).all()  # the same memory
open_files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
assert sum("memfd:kdstream" in name for name in open_files) == 1
other = Stream(sys.argv[1] + "/val", 50, train=False) | "decode"
if rank == 1:  # what goes wrong in one process
    cache._outcome = lambda work: (0, "a sample is damaged")
try:
    other.open()
except UserError as error:
    os.write(1, f"told {error}\\n".encode())
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="Linux has memory without a name")
def test_two_processes_of_a_host_decode_a_half_each_into_the_same_memory(digits, tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, tmp_path / "rank.py", digits], check=True, timeout=300, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    stream = Stream(digits / "train", 50, seed=3, cache="off") | "decode | augment(cifar, pad=2)"
    digest = hashlib.sha256(b"".join(batch.image.numpy().tobytes() for batch in stream)).hexdigest()
    assert lines.count(f"digest {digest}") == 2
    assert sum(line == "told a sample is damaged" for line in lines) == 2
