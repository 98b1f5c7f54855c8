"""Students that answer through a teacher's classifier: the parts that SRRL, SimKD and IJCKD put together, and a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jobs
import torch
from torch import Tensor, nn

from kdstream.batch import Outputs
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives import Task


def run(digits: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """A job of a few steps."""
    (result,) = jobs.run(
        jobs.recipe_of(digits, out, **{"name": "recipe", "epochs": 1, "optimizer": {"lr": 0.1}, **settings})
    )
    return result


def images(count: int = 6, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def answer(network: nn.Module, size: int = 16) -> Tensor:
    with torch.no_grad():
        return network.eval()(images(size=size))


def of(name: str, classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(name, classes)


def joined(term: Any, student: nn.Module, teacher: nn.Module, size: int = 16) -> tuple[nn.Module, Outputs, Outputs]:
    """The adapted student, its answer and the teacher's, the term being set up as the trainer does it."""
    probe = images(2, size)
    for network in (student, teacher):
        network.eval()
    strong = Tapped(teacher, term.teacher_taps)
    network = term.adapt(student, teacher, probe, build)
    tapped = Tapped(network, term.student_taps).eval()
    with torch.no_grad():
        ours, theirs = tapped(probe), strong(probe)
        term.setup(Task(5, 9, 1, ours, theirs, tapped, strong, build=build))
        return network, tapped(images(size=size)), strong(images(size=size))


class Flattened(nn.Module):
    """A network whose classifier reads every position of the map."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, num_classes)
        self.taps = {"map": "conv"}

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).flatten(1))
