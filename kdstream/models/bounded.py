"""Building a network that a file describes, in no more memory than its weights justify."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.weights import check_state

_CALLS = 200
"""Calls of torch for each tensor that a network has; usual are 4 to 25."""
_SLACK = 2**26
"""Numbers that a network may have beside its weights: tables of positions, layers that are replaced at once."""


def build_within(spec: Mapping[str, Any], state: Mapping[str, Tensor], source: str, weights: str) -> nn.Module:
    """As ``build(**spec)``, after a rehearsal without memory has shown that the weights are this network's.

    Args:
        spec: one that :func:`kdstream.models.specs.check_spec` let pass.
        state: the weights; they are not loaded.
        source, weights: what messages call the file of the spec and that of the weights.

    Raises:
        UserError: a network that cannot be built, that is larger than its weights or another than theirs.
    """
    numbers = sum(value.numel() for value in state.values())
    if spec["num_classes"] > max(numbers, 1):
        raise UserError(f"{source} describes {spec['num_classes']} classes, {weights} holds {numbers} numbers")
    most = 8 * numbers + _SLACK

    def built() -> nn.Module:
        with torch.set_grad_enabled(torch.is_grad_enabled()), _Budget(source, len(state), most):
            return build(**spec)

    try:
        with torch.device("meta"), contextlib.suppress(NotImplementedError):  # torchvision's RegNets need values
            twin = built()
            check_state(twin, state, weights)
            if sum(value.numel() for value in (*twin.parameters(), *twin.buffers())) > most:
                raise UserError(f"{source} describes a network far larger than the {numbers} numbers in {weights}")
        return built()
    except UserError:
        raise
    except Exception as error:  # whatever a constructor makes of odd arguments
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{source}: {spec['name']} cannot be built as described: {reason}") from error


class _Budget(TorchFunctionMode):
    """Stops what makes far more tensors, or far larger ones, than the weights have; in this thread only."""

    def __init__(self, source: str, tensors: int, numbers: int):
        super().__init__()
        self.source = source
        self.calls = _CALLS * (tensors + 20)
        self.numbers = numbers

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch._C._set_grad_enabled:  # a constructor's no_grad must end, however it ends
            return function(*args, **(kwargs or {}))
        self.calls -= 1
        if function in (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn):
            self.numbers -= _size(args)
        if self.calls < 0 or self.numbers < 0:
            raise UserError(f"{self.source} describes a network far larger than its weights")
        return function(*args, **(kwargs or {}))


def _size(shape: Any) -> int:
    """How many numbers a tensor of the shape has: sides, or one sequence of them."""
    sides = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
    count = 1
    for side in sides:
        count *= int(side)
    return count
