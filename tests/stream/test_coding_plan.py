"""Coding plans: equal to the online choice, one byte a sample, the same by any number of processes, never mistaken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

import kdstream as kd
from kdstream.batch import Batch
from kdstream.convert.make_shards import make_shards
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.stream.coding_plan import CHUNK, PlanKey, make_plan
from kdstream.stream.plan import Plan
from kdstream.stream.stream import Stream


def make_teacher(seed=0):
    torch.manual_seed(seed)
    network = build("resnet8", 10)
    network.fc.weight.data *= 20  # decided, so that versions differ
    return Tapped(network).eval()


def stream_of(folder, chain, teacher=None, **settings):
    given = {"teacher": teacher or make_teacher(), "teacher_mean": (0.3,) * 3, "teacher_std": (0.3,) * 3}
    return Stream(folder / "train", 60, given=given, **settings) | chain


@pytest.fixture
def folder(digits, tmp_path):
    shutil.copytree(digits, tmp_path / "digits")
    return tmp_path / "digits"


def plans(folder):
    return sorted(folder.glob("*.bin"))


@pytest.mark.parametrize(
    "chain",
    ["decode | coded(hkl, delta=20{}) | teacher", "decode | augment(eval, 16) | coded(hkl, delta=20{}) | teacher"],
)
def test_without_augmentation_a_plan_is_the_online_choice(folder, chain):
    online = {
        i: (q, logits)
        for b in stream_of(folder, chain.format(""))
        for i, q, logits in zip(b.index.tolist(), b.quality.tolist(), b.teacher.logits, strict=True)
    }
    planned = stream_of(folder, chain.format(", plan=auto"))
    seen = 0
    for batch in planned:
        for i, q, logits in zip(batch.index.tolist(), batch.quality.tolist(), batch.teacher.logits, strict=True):
            assert q == online[i][0]
            torch.testing.assert_close(logits, online[i][1], rtol=1e-4, atol=1e-4)
            seen += 1
    assert seen == 240
    (path,) = plans(folder)
    assert path.stat().st_size == 240
    assert len({q for q, _ in online.values()}) > 1


def test_with_augmentation_the_view_of_the_planned_version_is_used(folder):
    for order in (
        "coded(hkl, delta=20, plan=auto) | augment(cifar)",
        "augment(cifar) | coded(hkl, delta=20, plan=auto)",
    ):
        batch = next(iter(stream_of(folder, f"decode | {order} | teacher")))
        assert set(batch.quality.tolist()) <= {-1, 0, 20, 40, 60, 80, 100}
    inception = "decode | coded(hkl, delta=20, plan=auto) | augment(inception, 12) | teacher"
    assert next(iter(stream_of(folder, inception))).image.shape[-1] == 12
    assert len(plans(folder)) == 2  # raw images for both cifar orders (the same view), 12x12 for the boxes


def test_a_plan_is_found_again_and_another_teacher_makes_its_own(folder, monkeypatch):
    chain = "decode | coded(hkl, delta=50, plan=auto) | teacher"
    next(iter(stream_of(folder, chain)))
    (path,) = plans(folder)
    stamp = path.stat().st_mtime_ns
    next(iter(stream_of(folder, chain)))
    assert path.stat().st_mtime_ns == stamp
    next(iter(stream_of(folder, chain, make_teacher(1))))
    next(iter(stream_of(folder, chain.replace("50", "25"))))
    assert len(plans(folder)) == 3


def test_a_named_plan_that_does_not_fit_is_refused(folder):
    next(iter(stream_of(folder, "decode | coded(hkl, delta=50, plan=auto) | teacher")))
    (path,) = plans(folder)
    chain = f"decode | coded(hkl, delta={{}}, plan='{path}') | teacher"
    assert next(iter(stream_of(folder, chain.format(50)))).quality is not None
    with pytest.raises(UserError, match="was made for delta 50, not 25"):
        next(iter(stream_of(folder, chain.format(25))))
    with pytest.raises(UserError, match=r"was made for teacher \w+\.\.\., not \w+"):
        next(iter(stream_of(folder, chain.format(50), make_teacher(1))))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        next(iter(stream_of(folder, chain.format(50))))
    with pytest.raises(UserError, match="no coding plan at"):
        next(iter(stream_of(folder, "decode | coded(hkl, plan=nowhere.bin) | teacher")))
    with pytest.raises(UserError, match="need no plan"):
        stream_of(folder, "decode | coded(fixed(5), plan=auto) | teacher")


KEY = PlanKey("data", "teacher", "hkl", 10, "4:4:4", "view")


class Numbers:
    """As much of a data set as a plan needs to know."""

    split, fingerprint = "train", "f" * 16

    def __init__(self, path, count):
        path.mkdir(exist_ok=True)
        self.path, self.count = path, count

    def __len__(self):
        return self.count


def choosing(layout, taken, change=lambda batch: batch):
    """Chooses quality index % 101, the original for every seventh; notes the chunks that were asked for."""

    def choose(chunks):
        for chunk in chunks:
            taken.append(chunk)
            index = layout.batch(0, chunk)
            quality = torch.where(index % 7 == 0, -1, index % 101)
            yield change(Batch(torch.zeros(len(index), 3, 1, 1), index, index, quality=quality))

    return choose


SIZES = [1, 2, 511, 512, 513, 767, 1023, 1024, 1025, 1438, 1535, 1536, 1537, 50_000]


@pytest.mark.parametrize("count", SIZES)
def test_a_plan_of_any_size(count, tmp_path):
    layout, taken = Plan(count, CHUNK, shuffle=False), []
    plan = make_plan(Numbers(tmp_path, count), KEY, layout, choosing(layout, taken))
    index = torch.arange(count)
    assert plan.equal(torch.where(index % 7 == 0, 255, index % 101).to(torch.uint8))
    assert taken == list(range(layout.steps))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".json"]


@pytest.mark.parametrize("count", SIZES)
def test_chunks_of_another_layout_or_damaged_ones_are_made_again(count, tmp_path):
    layout, taken = Plan(count, CHUNK, shuffle=False), []
    whole = make_plan(Numbers(tmp_path / "whole", count), KEY, layout, choosing(layout, []))
    parts = tmp_path / f"{KEY.file_name('train')[:-4]}.parts"
    parts.mkdir()
    for chunk in range(-(-count // CHUNK)):  # of the layout before: full chunks and a rest, bare bytes
        (parts / f"{chunk:06d}").write_bytes(bytes(min(CHUNK, count - chunk * CHUNK)))

    def killed_at(chunk):
        def change(batch):
            if int(batch.index[0]) == layout.bounds(chunk)[0]:
                raise KeyboardInterrupt
            return batch

        return change

    choose = choosing(layout, taken, killed_at(layout.steps - 1))
    with pytest.raises(KeyboardInterrupt):
        make_plan(Numbers(tmp_path, count), KEY, layout, choose)
    assert taken == list(range(layout.steps))
    for chunk in (1, 2):  # one flipped bit, one short file
        if chunk < layout.steps - 1:
            data = bytearray((parts / f"{chunk:06d}").read_bytes())
            data[5] ^= 1
            (parts / f"{chunk:06d}").write_bytes(data if chunk == 1 else data[:-1])
    taken.clear()
    assert make_plan(Numbers(tmp_path, count), KEY, layout, choosing(layout, taken)).equal(whole)
    assert taken == [chunk for chunk in range(layout.steps) if chunk in (1, 2, layout.steps - 1)]
    assert not parts.exists()


def without_the_first(batch):
    return batch.map_tensors(lambda values: values[1:])


def first_twice(batch):
    return batch.map_tensors(lambda values: torch.cat([values[:1], values]))


@pytest.mark.parametrize("count", [2, 513, 1100])
@pytest.mark.parametrize("change", [without_the_first, first_twice])
def test_a_chain_that_drops_or_adds_has_no_plan(change, count, tmp_path):
    layout = Plan(count, CHUNK, shuffle=False)
    with pytest.raises(UserError, match="needs every sample, but a stage drops or adds some: use plan=off"):
        make_plan(Numbers(tmp_path, count), KEY, layout, choosing(layout, [], change))
    assert not list(tmp_path.glob("*.bin"))


def test_a_stage_may_order_a_batch_anew(tmp_path):
    layout = Plan(700, CHUNK, shuffle=False)

    def turned(batch):
        return batch.map_tensors(lambda values: values.flip(0))

    plain = make_plan(Numbers(tmp_path / "a", 700), KEY, layout, choosing(layout, []))
    assert make_plan(Numbers(tmp_path / "b", 700), KEY, layout, choosing(layout, [], turned)).equal(plain)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plan_for_the_quickstart(workers, tmp_path):
    make_shards("digits", tmp_path, processes=1, console=Console(quiet=True), splits=["train"])
    chain = "decode | coded(hkl, delta=50{}) | teacher"
    planned = stream_of(tmp_path, chain.format(", plan=auto"), train=False, workers=workers)
    assert len(planned.dataset) == 1438
    online = torch.cat([batch.quality for batch in stream_of(tmp_path, chain.format(""), train=False)])
    assert torch.cat([batch.quality for batch in planned]).equal(online)
    if workers:
        odd = kd.stage(lambda samples: (sample for sample in samples if sample["label"] % 2))
        with pytest.raises(UserError, match="drops or adds some"):
            next(iter(stream_of(tmp_path, kd.decode() | odd | kd.coded("hkl", delta=50, plan="auto") | kd.teacher())))


MAKE = """
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from kdstream.stream import coding_plan
from test_coding_plan import stream_of
coding_plan.CHUNK = 16
import kdstream.stream.stream as module
module.CHUNK = 16
if "RANK" in __import__("os").environ:
    torch.distributed.init_process_group("gloo")
stream_of(Path(sys.argv[1]), "decode | coded(hkl, delta=10, plan=auto) | teacher", workers=int(sys.argv[3])).open()
if torch.distributed.is_initialized():
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


def test_two_processes_and_killed_ones_make_the_same_bytes(folder, tmp_path):
    (tmp_path / "make.py").write_text(MAKE)
    here = os.path.dirname(__file__)
    script = [tmp_path / "make.py", folder, here, "0"]
    subprocess.run([sys.executable, *script], check=True, timeout=300, capture_output=True)
    (path,) = plans(folder)
    alone, about = path.read_bytes(), path.with_suffix(".json").read_text()
    path.unlink()
    path.with_suffix(".json").unlink()
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*two, *script], check=True, timeout=300, capture_output=True)
    assert plans(folder) == [path]
    assert path.read_bytes() == alone
    path.unlink()
    path.with_suffix(".json").unlink()
    parts = path.with_suffix(".parts")
    process = subprocess.Popen([sys.executable, *script], stderr=subprocess.DEVNULL)
    while not (parts.is_dir() and len(list(parts.iterdir())) >= 2) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {part.name: part.stat().st_mtime_ns for part in parts.glob("0*") if len(part.name) == 6}
    assert done
    assert not path.exists()
    subprocess.run([sys.executable, *script], check=True, timeout=300, capture_output=True)
    assert path.read_bytes() == alone
    assert path.with_suffix(".json").read_text() == about
    assert json.loads(about)["count"] == 240
    assert not parts.exists()
