"""The average of the student's weights over its training, which often does better than the weights of any one step."""

from __future__ import annotations

import copy

import torch
from torch import nn


def averaged(network: nn.Module) -> nn.Module:
    """A copy of a network that nothing trains, for :func:`follow`; it keeps the network's ``spec`` and taps."""
    return copy.deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move ``average`` towards ``network``: a <- decay * a + (1 - decay) * w, for weights and running statistics.

    As timm's ModelEmaV3 does without its warm-up; what is counted (integers) is copied.

    Args:
        average: see :func:`averaged`.
        network: the same network, after a step of its optimizer.
        decay: 0..1; 0 makes them equal.
    """
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if decay and mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
