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
    world = count_processes()
    parts = tuple(part.detach().contiguous() for part in parts)
    if world == 1:
        return parts
    own = torch.tensor([len(parts[0])], device=parts[0].device)
    sizes = [torch.empty_like(own) for _ in range(world)]
    distributed.all_gather(sizes, own)
    counts: list[int] = torch.cat(sizes).tolist()
    return tuple(_join(part, counts) for part in parts)


def _join(part: Tensor, counts: list[int]) -> Tensor:
    """Collectives need equal shapes, so every slice is padded to the longest."""
    padded = part.new_zeros(max(counts), *part.shape[1:])
    padded[: len(part)] = part
    received = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(received, padded)
    return torch.cat([slice_[:count] for slice_, count in zip(received, counts, strict=True)])
