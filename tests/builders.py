"""Batches, and answers of networks, as small as what a test asks of them."""

from __future__ import annotations

import torch
from torch import Tensor

from kdstream.batch import Batch, Outputs


def batch(
    count: int | None = None,
    *,
    image: Tensor | None = None,
    label: Tensor | None = None,
    key: Tensor | None = None,
    teacher: Outputs | None = None,
) -> Batch:
    """The first samples of a data set: black pixels of class 0 where nothing else is given; as many as there are images
    or labels, else 4."""
    given = image if image is not None else label
    count = count or (4 if given is None else len(given))
    return Batch(
        torch.zeros(count, 3, 1, 1) if image is None else image,
        torch.zeros(count, dtype=torch.int64) if label is None else label,
        torch.arange(count),
        rng_key=key,
        teacher=teacher,
    )


def maps(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers of a seed of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outputs(seed: int = 0, count: int = 4, **shapes: tuple[int, ...]) -> Outputs:
    """Tap name -> random features [count, *shape]; the logits, of 10 classes, are 0."""
    return Outputs(torch.zeros(count, 10), {tap: maps(count, *shape, seed=seed) for tap, shape in shapes.items()})


def penultimate(features: Tensor, classes: int = 3) -> Outputs:
    """These features before the classifier; the logits are 0."""
    return Outputs(features.new_zeros(len(features), classes), {"penultimate": features})
