"""Batches, answers of networks and terms that are set up, as small as what a test asks of them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from kdstream.batch import Batch, Outputs
from kdstream.objectives import OBJECTIVES, Task, Term

seeds = st.integers(0, 2**31 - 1)
SHAPES = {"block1": (6, 8, 8), "block2": (8, 4, 4), "block3": (10, 2, 2), "penultimate": (10,)}
"""Taps that the relational terms read -> what a sample has there."""


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


def logits(seed: int, n: int = 5, c: int = 7, spread: float = 3.0) -> Tensor:
    """Of n samples and c classes, float64."""
    return spread * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(seed: int, n: int = 5, c: int = 7) -> Tensor:
    return torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))


def no_labels(count: int) -> Batch:
    """A batch whose labels cannot be used."""
    return Batch(torch.zeros(count, 3, 1, 1), None, torch.arange(count))  # type: ignore[arg-type]


def correlated(seed: int, count: int = 6, classes: int = 12) -> tuple[Tensor, Tensor]:
    """Logits of a student, and of a teacher who agrees with it in part."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(count, classes, dtype=torch.float64, generator=generator) for _ in range(2))
    return student, student / 2 + teacher


def loss(term: Term, student: Tensor, teacher: Tensor) -> Tensor:
    """What a term of logits alone says of them."""
    return term(Outputs(student), Outputs(teacher), None)  # type: ignore[arg-type]


def task(student: Outputs, teacher: Outputs | None) -> Task:
    """Of 10 classes and 100 samples, with these answers to the probe."""
    return Task(10, 100, 1, student, teacher)


def activations(count: int, seed: int) -> Outputs:
    """Random features behind a ReLU, of :data:`SHAPES`."""
    return outputs(seed, count, **SHAPES).map(torch.relu)


def ready(name: str, **settings: Any) -> Term:
    """The term, set up for :data:`SHAPES` on both sides."""
    torch.manual_seed(0)
    term = OBJECTIVES.find(name)(**settings)
    probe = activations(2, 0)
    term.setup(task(probe, probe))
    return term
