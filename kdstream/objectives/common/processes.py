"""What a term must know of the samples that the other processes of a job see."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def count_processes() -> int:
    """How many processes train together; 1 without torch.distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_rank() -> int:
    """Which of them this one is, from 0."""
    return distributed.get_rank() if count_processes() > 1 else 0


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of every process's ``values`` (any shape, the same everywhere), without gradient."""
    values = values.detach().clone()
    if count_processes() > 1:
        distributed.all_reduce(values)
    return values


def join_samples(*parts: Tensor) -> tuple[Tensor, ...]:
    """Each part with the samples of every process, in the order of the processes and without gradient.

    All processes must call this at the same point. Their numbers of samples may differ: they are exchanged first,
    which with more than one process waits for the device once.

    Args:
        parts: [n,...] each, with the same n >= 0 within a process.

    Returns:
        [sum of all n,...] each, equal on every process.
    """
    parts = tuple(part.detach() for part in parts)
    if count_processes() == 1:
        return tuple(part.contiguous() for part in parts)
    counts = sample_counts(parts[0])
    return tuple(join_parts(part, counts) for part in parts)


def sample_counts(part: Tensor) -> list[int]:
    """How many samples [n,...] every process has; waits for the device once where there are several."""
    own = torch.tensor([len(part)], device=part.device)
    sizes = [torch.empty_like(own) for _ in range(count_processes())]
    if len(sizes) == 1:
        return [len(part)]
    distributed.all_gather(sizes, own)
    counts: list[int] = torch.cat(sizes).tolist()
    return counts


def join_parts(part: Tensor, counts: list[int]) -> Tensor:
    """[n,...] of every process, joined: [sum of counts,...]; ``counts`` as :func:`sample_counts` gives them.

    Collectives need equal shapes, so every slice is padded to the longest.
    """
    padded = part.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = part
    received = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(received, padded)
    return torch.cat([slice_[:count] for slice_, count in zip(received, counts, strict=True)])
