"""Small jobs on the digits, for tests: in this process, in two, and in one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import nn

from kdstream.display.progress import Display
from kdstream.recipe import Recipe, make_recipe
from kdstream.training.job import Job

DRIVER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from accelerate import Accelerator
from kdstream.recipe_file import load_recipe
from kdstream.training.loop import Trainer
from kdstream.training.job import Job
from kdstream.display.progress import Display

path, processes, name, step = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
save = Trainer._save

def save_and_die(self, optimizer):
    save(self, optimizer)
    if self.recipe.name == name and self.global_step == step:
        os.kill(os.getpid(), signal.SIGKILL)

if step:
    Trainer._save = save_and_die
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == processes
Job(load_recipe(path), accelerator, Display(enabled=False)).run()
accelerator.wait_for_everyone()
accelerator.end_training()
"""


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
        "tensorboard": False,
        "optimizer": {"lr": 0.05},
        "schedule": {"name": "cosine", "warmup": 0.5},
        "out": str(out),
    }
    return make_recipe({**base, **settings}, "test")


def run(recipe: Recipe) -> list[dict[str, Any]]:
    """The results, from this process."""
    return Job(recipe, Accelerator(cpu=True), Display(enabled=False)).run()


def run_in_two(recipe: Recipe, folder: Path) -> None:
    """The job by two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, *_files(recipe, folder), "2", "-", "0"]
    subprocess.run(command, check=True, timeout=300, env=_environment())


def run_and_kill(recipe: Recipe, folder: Path, name: str, step: int) -> None:
    """The job by another process, which is killed as soon as the run ``name`` has saved its state after ``step``."""
    recipe = recipe.model_copy(update={"checkpoint_seconds": 0.0})
    command = [sys.executable, *_files(recipe, folder), "1", name, str(step)]
    done = subprocess.run(command, timeout=300, env=_environment())
    assert done.returncode == -signal.SIGKILL, f"it ended with {done.returncode} before it was killed"


def _environment() -> dict[str, str]:
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _files(recipe: Recipe, folder: Path) -> tuple[Path, Path]:
    os.makedirs(folder, exist_ok=True)
    (folder / "driver.py").write_text(DRIVER)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    return folder / "driver.py", folder / "recipe.yaml"


def views(count: int = 4) -> torch.Tensor:
    """Standardised images [count,3,16,16]."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
