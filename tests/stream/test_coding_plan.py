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

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
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
