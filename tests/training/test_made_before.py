"""What an earlier version (commit 6e16430) left: shards, index, export, plan, and a training in the middle."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from accelerate import Accelerator

from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.recipe_file import load_recipe
from kdstream.training.job import Job
from kdstream.training.metrics import read_metrics


def test_a_training_that_an_earlier_version_began_is_finished(tmp_path, monkeypatch):
    with tarfile.open(Path(__file__).parent / "made_by_6e16430.tar.xz") as files:
        files.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    index = Path("set/train.index.npz").read_bytes()
    (plan,) = (path.read_bytes() for path in Path("set").glob("*.bin"))
    first = read_metrics(Path("run"))
    (result,) = Job(load_recipe("r.yaml"), Accelerator(cpu=True), Display(enabled=False)).run()
    assert len(open_shards("set/train")) == 24
    assert Path("set/train.index.npz").read_bytes() == index
    # The teacher has options, which did not count for a plan's name then: it is made again, and is the same.
    assert {path.read_bytes() for path in Path("set").glob("*.bin")} == {plan}
    rows = read_metrics(Path("run"))
    assert rows[: len(first)] == first
    # What that version itself went on to measure.
    assert rows[-1]["epoch"] == 2
    assert rows[-1]["loss"] == pytest.approx(1.19511, rel=1e-3)
    assert rows[-1]["val/loss"] == pytest.approx(2.23643, rel=1e-3)
    assert json.loads(Path("run/student.json").read_text())["spec"] == {
        "name": "resnet8",
        "num_classes": 10,
        "widths": [4, 4, 6, 8],
    }
    assert result["epochs"] == 2
