"""Where float64 is computed: on the tensor's device, or in main memory for devices that lack it (Apple's GPUs)."""

from __future__ import annotations

import torch
from torch import Tensor

LACKING = {"mps"}
"""Types of devices without float64."""
HOST = torch.device("cpu")
"""Where it is computed instead."""


def exact_device(device: torch.device | str) -> torch.device:
    """The device itself where it has float64, else the host."""
    device = torch.device(device)
    return HOST if device.type in LACKING else device


def exact(values: Tensor) -> Tensor:
    """The values in float64, on :func:`exact_device`; differentiable.

    What is made of them comes back with ``.to(values)``, which takes device and dtype from ``values``.
    """
    return values.to(exact_device(values.device)).double()  # moved first: it could not be made double there
