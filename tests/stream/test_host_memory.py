"""How much memory is free, in a container too; and memory that several processes see."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kdstream.stream import host_memory
from kdstream.stream.host_memory import free_memory, mapped, new_piece


def group(folder, names, values):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, values, strict=True):
        (folder / name).write_text(f"{value}\n")


V2 = ("memory.max", "memory.current", "memory.stat")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")


def test_a_control_group_that_leaves_less_counts(tmp_path):
    whole = psutil.virtual_memory().available
    assert 0 < free_memory() < 2 * whole
    assert free_memory(tmp_path) > whole // 2  # a system without control groups
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,cpuacct:/\n0::/job/step\n")
    top = tmp_path / "sys/fs/cgroup"
    group(top / "job/step", V2, ("max", 100, "inactive_file 7"))
    assert free_memory(tmp_path) > whole // 2
    group(top / "job", V2, (5000, 3000, "anon 1\ninactive_file 7"))
    assert free_memory(tmp_path) == 2007
    group(top, V2, (1000, 3000, "inactive_file 0"))
    assert free_memory(tmp_path) == 0
    # Version 1, in a container that does not see the path of its own group.
    (tmp_path / "proc/self/cgroup").write_text("5:memory:/docker/abc\n")
    group(top / "memory", V1, (900, 400, "inactive_file 1\ntotal_inactive_file 30"))
    assert free_memory(tmp_path) == 530


needs_pieces = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="Linux has such memory")


@needs_pieces
def test_a_piece_is_the_same_memory_wherever_it_is_mapped():
    piece = new_piece(10_000)
    here, again = mapped(piece), mapped(piece)
    here[5000] = 7
    assert again[5000] == 7
    other = (
        "import sys\nfrom kdstream.stream.host_memory import Piece, mapped\n"
        f"memory = mapped({piece!r})\nassert memory[5000] == 7\nmemory[6000] = 9\n"
    )
    subprocess.run([sys.executable, "-c", other], check=True, timeout=120)
    assert here[6000] == 9
    for wrong in ({"size": 9_999}, {"inode": piece.inode + 1}, {"process": 2**22 + 1}, {"descriptor": 1}):
        assert mapped(dataclasses.replace(piece, **wrong)) is None
    piece.close()
    assert here[6000] == again[6000] == 9
    assert mapped(piece) is None


def test_a_system_without_pieces(monkeypatch):
    monkeypatch.delattr(host_memory.os, "memfd_create", raising=False)
    assert new_piece(10) is None
