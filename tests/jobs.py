"""Small jobs on the digits, for tests: in this process, in two, and in one that is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from processes import alone, together
from torch import nn

from kdstream.display.progress import Display
from kdstream.recipe import Recipe, make_recipe
from kdstream.training.job import Job
from kdstream.training.loop import Trainer


class Plain(nn.Sequential):
    """A network without batch statistics, as ``jobs:Plain``: several processes train it as one does."""

    def __init__(self, num_classes: int):
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 64, num_classes)
        )


def recipe_of(digits: Path, out: Path, **settings: Any) -> Recipe:
    """A recipe of two epochs with five steps each."""
    base = {
        "name": "job",
        "data": {"path": str(digits)},
        "student": "resnet8",
        "stream": "decode | augment(cifar, pad=1, flip=false)",
        "epochs": 2,
        "batch_size": 48,
        "workers": 0,
        "optimizer": {"lr": 0.05},
        "schedule": {"name": "cosine", "warmup": 0.5},
        "out": str(out),
    }
    return make_recipe({**base, **settings}, "test")


def run(recipe: Recipe) -> list[dict[str, Any]]:
    """The results, from this process."""
    return Job(recipe, Accelerator(cpu=True), Display(enabled=False)).run()


def run_in_two(recipe: Recipe) -> None:
    """The job by two processes."""
    together(2, _run_here, recipe)


def _run_here(recipe: Recipe) -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    Job(recipe, accelerator, Display(enabled=False)).run()


def run_and_kill(recipe: Recipe, name: str, step: int) -> None:
    """The job by another process, which is killed as soon as the run ``name`` has saved its state after ``step``."""
    process = alone(_run_and_die, recipe.model_copy(update={"checkpoint_seconds": 0.0}), name, step)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL, f"it ended with {process.exitcode} before it was killed"


def _run_and_die(recipe: Recipe, name: str, step: int) -> None:
    save = Trainer._save

    def save_and_die(self, optimizer):
        save(self, optimizer)
        if self.recipe.name == name and self.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer._save = save_and_die
    run(recipe)


def views(count: int = 4) -> torch.Tensor:
    """Standardised images [count,3,16,16]."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
