"""A teacher whose classifier students reuse, and the networks as they were in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from joint_students import run
from torch import nn

from kdstream.models.export import save_student


@pytest.fixture(scope="session")
def teacher(digits, tmp_path_factory) -> str:
    """The folder of a small teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    assert run(digits, folder, student="resnet14", loss="ce", epochs=8)["top1"] > 60
    return str(folder)


@pytest.fixture
def trained(monkeypatch) -> list[nn.Module]:
    """The networks that trainings export, as they were in training."""
    found: list[nn.Module] = []

    def save(folder: Path, network: nn.Module, **about: Any) -> None:
        found.append(network)
        save_student(folder, network, **about)

    monkeypatch.setattr("kdstream.training.results.save_student", save)
    return found
