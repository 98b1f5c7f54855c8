"""The most memory that a training takes: that of its own process, as the system counts it."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from kdstream.training import memory
from kdstream.training.memory import peak_memory

CPU = torch.device("cpu")


def test_the_peak_is_the_systems():
    found = peak_memory(CPU)
    now = {
        key: 1024 * int(value) for key, value in re.findall(r"(Vm\w+):\s*(\d+)", Path("/proc/self/status").read_text())
    }
    assert set(found) == {"process"}
    assert now["VmRSS"] * 0.9 < found["process"] <= now["VmHWM"]


def test_bytes_and_systems_that_do_not_tell(monkeypatch, tmp_path):
    status = tmp_path / "status"
    monkeypatch.setattr(memory, "_STATUS", status)
    assert peak_memory(CPU) == {}
    status.write_text("VmPeak:\t  9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n")
    assert peak_memory(CPU) == {"process": 2 * 2**20}
