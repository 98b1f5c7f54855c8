"""The samples of all processes in one tensor, with a gradient: for terms that compare the samples of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdstream.objectives.common.processes import count_processes, join_parts, process_rank, sample_counts


def gather(*parts: Tensor) -> tuple[Tensor, ...]:
    """Each part with the samples of every process, in the order of the global batch; alone, the parts themselves.

    A loss of the result is the same number on every process. Training weights it as it weights the mean over a slice,
    by the slice's share n/N of the samples, and adds the processes' gradients up
    (:class:`kdstream.training.accumulation.Accumulation`): all together that is the loss once, but what a process's
    own samples did would count with its own share only. Every process holds the whole gradient, so no other is asked
    for its part: on the way back a process's own rows are multiplied by N/n. Losses must therefore not depend on
    anything that differs between processes.

    All processes must call this at the same point.

    Args:
        parts: [n,...] each, with the same n >= 0 within a process; of any type, with or without gradient.

    Returns:
        [N,...] each, N the sum of all n; equal on every process.
    """
    if count_processes() == 1:
        return parts
    counts = sample_counts(parts[0])
    return tuple(_Gathered.apply(part, counts) if part.requires_grad else join_parts(part, counts) for part in parts)


class _Gathered(torch.autograd.Function):
    """[n,...] -> [N,...]; see :func:`gather`."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return join_parts(part, counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rank, counts = process_rank(), ctx.counts
        start, count = sum(counts[:rank]), counts[rank]
        return gradient[start : start + count] * (sum(counts) / max(count, 1)), None
