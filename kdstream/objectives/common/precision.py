"""The precision in which objectives compute, whatever the networks ran in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """float16 and bfloat16 become float32, which mixed precision needs: squares overflow and softmaxes round to
    nothing in half precision. float32 and float64 stay as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
