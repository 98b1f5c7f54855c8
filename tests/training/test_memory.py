"""The most memory that a training takes: bytes of its own process, which do not fall again."""

from __future__ import annotations

import subprocess
import sys

import torch

from kdstream.training import memory
from kdstream.training.memory import peak_memory

CPU = torch.device("cpu")


def test_the_peak_rises_and_does_not_fall():
    before = peak_memory(CPU)
    assert set(before) == {"process"}
    block = bytearray(b"x" * before["process"])
    during = peak_memory(CPU)["process"]
    del block
    assert peak_memory(CPU)["process"] >= during >= 1.5 * before["process"]


def test_a_process_does_not_inherit_that_of_the_one_that_starts_it():
    code = "import re; print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < peak_memory(CPU)["process"] / 4


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    assert peak_memory(CPU) == {}
