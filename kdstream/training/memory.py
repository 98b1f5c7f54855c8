"""The most memory that a training has taken: of its process, and of its GPU."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes, the most at any time since the process began.

    Args:
        device: that the training runs on.

    Returns:
        ``process``: resident, of this process without its readers (not on systems that do not tell); ``device``: what
        torch has given out on a GPU (only there).
    """
    found: dict[str, int] = {}
    # Not getrusage's ru_maxrss, which a new process inherits from the one that started it.
    status = _STATUS.read_text() if _STATUS.exists() else ""
    if (most := re.search(r"^VmHWM:\s*(\d+) kB", status, re.M)) is not None:
        found["process"] = int(most[1]) * 1024
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(device)
    return found
