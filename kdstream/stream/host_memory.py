"""Memory of this host: how much of it is free, and a piece of it that several processes share.

The piece is Linux's anonymous memory file: it has no name on any disk and goes with the last process that has it,
however that one ends; the size of /dev/shm does not limit it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take without pushing anything out: the system's, or its control groups'."""
    return min([psutil.virtual_memory().available, *_groups(root)])


def _groups(root: Path) -> list[int]:
    """What each control group (a container's, a job's of a scheduler) that limits this process leaves."""
    found = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                top = root / "sys/fs/cgroup/memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            own = top / path.lstrip("/")
            for folder in (own, *own.parents):
                with contextlib.suppress(OSError, ValueError, KeyError):  # no such group here, or "max"
                    limit, used = (int((folder / name).read_text()) for name in names[:2])
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    found.append(max(0, limit - used + int(stat[names[2]])))  # pages of files that can go at once
                if folder == top:
                    break
    return found


@dataclass(frozen=True)
class Piece:
    """An anonymous memory file of one process, as others find it.

    Attributes:
        host: of the process; the same for all that can see each other.
        process, descriptor: where it is open.
        device, inode, size: what it must turn out to be.
    """

    host: str
    process: int
    descriptor: int
    device: int
    inode: int
    size: int

    def close(self) -> None:
        """In the process that made it; who has mapped it keeps it."""
        os.close(self.descriptor)


def new_piece(size: int) -> Piece | None:
    """A piece of ``size`` bytes, which takes memory where it is written to; None where the system has no such."""
    try:
        host = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
        descriptor = os.memfd_create("kdstream")
    except (OSError, AttributeError):
        return None
    try:
        os.truncate(descriptor, size)
        state = os.fstat(descriptor)
    except OSError:
        os.close(descriptor)
        return None
    return Piece(host, os.getpid(), descriptor, state.st_dev, state.st_ino, size)


def mapped(piece: Piece) -> Tensor | None:
    """The piece as uint8 [size], the same memory in all processes of its host that map it; None where it is out of
    reach."""
    try:
        path = f"/proc/{piece.process}/fd/{piece.descriptor}"
        if not os.readlink(path).startswith("/memfd:kdstream"):
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            state = os.fstat(descriptor)
            if (state.st_dev, state.st_ino, state.st_size) != (piece.device, piece.inode, piece.size):
                return None
            return torch.from_numpy(np.frombuffer(mmap.mmap(descriptor, piece.size), np.uint8))
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None
