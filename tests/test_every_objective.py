"""Every objective of the registry trains a student, alone in one process; some of them coded in two.

A new objective is tested here without being named; :data:`NEEDS` says what it needs beside its defaults.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from every import EVERY
from processes import together

from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.objectives import OBJECTIVES
from kdstream.recipe import Recipe, make_recipe
from kdstream.training.checks import check
from kdstream.training.job import Job
from kdstream.training.loop import Trainer
from kdstream.training.metrics import read_metrics
from kdstream.training.networks import make_teacher
from kdstream.training.stop import StopFlag

EPOCHS = int(os.environ.get("KDSTREAM_TEST_EPOCHS", "2"))
"""Of 10 steps each. More show more: with 10, every objective trains 100 steps."""
NEEDS: dict[str, dict[str, Any]] = {
    **{name: {"loss": {"epochs": 2, "milestones": []}} for name in ("ab", "fsp", "ft")},  # instead of 30 and more
    "bss": {"epochs": max(EPOCHS, 4)},  # its attacks succeed better as the student learns: it takes longer to fall
    "crd": {"loss": {"nce_k": 64, "nce_m": 0.9}},  # with a faster bank the loss peaks in the second epoch
    "dkd": {"loss": {"warmup": 0}},  # while the weight rises, so does the loss
    "pkt": {"loss": {"weight": 30000}},  # RepDistiller's; its values are tiny
    "reviewkd": {"loss": {"warmup_epochs": 0}},  # the same
    "vitkd": {
        "student": {"model": "tiny_vit:TinyViT"},
        "teacher": {"model": "tiny_vit:TinyViT", "options": {"width": 32}, "train": {"epochs": 4}},
    },
}
"""Objective -> settings of its term (``loss``) and of the recipe."""
STREAMS = {"alone": "decode | augment(cifar, pad=1, flip=false)"}
STREAMS["coded"] = STREAMS["alone"] + " | coded(hkl, delta=100)"


TOGETHER = [[name] for name in OBJECTIVES] if EVERY else [["ab", "crd", "simkd"]]
"""Objectives that two processes train, by one launch each.

What the loss and the gradients of two processes are is said of every objective by objectives/common/test_gather.py.
What a training adds to that is seen by few: a phase of its own (ab), a memory bank that both write (crd), a student of
two parts (simkd); bss, dml, one and tald have it in the test files of their names.
"""
RUNS = [(name, "alone") for name in OBJECTIVES] + [(name, "coded") for name in (OBJECTIVES if EVERY else ("dkd", "at"))]


@pytest.fixture(scope="module")
def teacher(digits, tmp_path_factory) -> str:
    """The folder of a small trained teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    recipe = {**_base(digits), "epochs": 8, "batch_size": 48, "loss": "ce", "out": str(folder)}
    Job(make_recipe(recipe, "teacher"), Accelerator(cpu=True), Display(enabled=False)).run()
    return str(folder)


def _base(digits: Path) -> dict[str, Any]:
    return {
        "data": {"path": str(digits)},
        "student": "resnet8",
        "stream": STREAMS["alone"],
        "epochs": EPOCHS,
        "batch_size": 24,
        "workers": 0,
        "optimizer": {"lr": 0.04, "clip": 5.0},
        "schedule": {"name": "cosine", "warmup": 0.5},
    }


def _run(name: str, stream: str) -> dict[str, Any]:
    """What one objective changes in the recipe that all share."""
    needs = dict(NEEDS.get(name, {}))
    loss = {name: needs.pop("loss", {})}
    if name != "ce":
        loss["ce"] = 0.1
    if stream == "coded" and not OBJECTIVES.find(name).uses_teacher:
        loss["kd"] = 0.1  # without a term that looks at the teacher, nothing would be coded
    return {"loss": loss, "stream": STREAMS[stream], **needs}


def fit(recipe: Recipe, accelerator: Accelerator) -> None:
    """Train; without a report, which takes longer than some of these trainings, where the teacher is there already."""
    display = Display(enabled=False)
    if recipe.teacher.train is not None:
        Job(recipe, accelerator, display).run()
        return
    check(recipe)
    train, val = (open_shards(Path(recipe.data.path) / split) for split in ("train", "val"))
    teacher = make_teacher(recipe.teacher, train.num_classes)
    Trainer(recipe, recipe.folder(), train, val, teacher, accelerator, display, StopFlag()).fit()


def went_well(folder: Path, name: str) -> None:
    """That the run in ``folder`` stayed finite, and that the objective fell in every stage that it acts in."""
    rows = [row for row in read_metrics(folder) if row["kind"] == "epoch"]
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    stages: dict[str, list[float]] = {}
    for row in rows:
        stages.setdefault(row["phase"], []).append(row.get(f"loss/{name}", row["loss"]))
    assert len(stages["main"]) == NEEDS.get(name, {}).get("epochs", EPOCHS)
    for stage, values in stages.items():
        assert len(values) == 1 or values[-1] < values[0], f"{name}, {stage}: {values}"


def _recipe(digits: Path, teacher: str, name: str, stream: str, out: Path) -> Recipe:
    return make_recipe({**_base(digits), "teacher": teacher, **_run(name, stream), "out": str(out)}, name)


@pytest.mark.parametrize(("name", "stream"), RUNS)
def test_it_trains(digits, teacher, tmp_path, name, stream):
    fit(_recipe(digits, teacher, name, stream, tmp_path), Accelerator(cpu=True))
    went_well(tmp_path, name)


def fit_all(recipes: list[Recipe]) -> None:
    """As one of two processes."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    for recipe in recipes:
        fit(recipe, accelerator)


@pytest.mark.parametrize("names", TOGETHER, ids="+".join)
def test_two_processes_train_it(digits, teacher, tmp_path, names):
    together(2, fit_all, [_recipe(digits, teacher, name, "coded", tmp_path / name) for name in names])
    for name in names:
        went_well(tmp_path / name, name)
