"""Commands run in this process, and a network to measure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdstream.cli import main
from kdstream.models import build
from kdstream.models.export import save_student


@pytest.fixture
def run_main(capsys):
    """Run a command: its ``main``, then its arguments. Gives (exit code, what it printed, its error line)."""

    def call(main, *arguments) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def run_verb(run_main, monkeypatch, tmp_path):
    """Run a verb of kdstream in an empty folder, in 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: run_main(main, *arguments)


@pytest.fixture(scope="session")
def network():
    torch.manual_seed(0)
    return build("resnet8", 10).eval()


@pytest.fixture(scope="session")
def exported(network, tmp_path_factory) -> Path:
    """The folder of its export."""
    folder = tmp_path_factory.mktemp("teachers") / "digits-resnet8"
    save_student(folder, network, mean=(0.3, 0.3, 0.3), std=(0.2, 0.2, 0.2))
    return folder
