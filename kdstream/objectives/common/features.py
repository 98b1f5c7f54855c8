"""One pair of features on its way to a comparison: the taps' names, vectors, one size for two maps, products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.objectives.common.precision import at_least_float32


def tap_pair(tap: str, teacher_tap: str | None) -> tuple[tuple[str], tuple[str]]:
    """The taps of a term that reads one of each network; the teacher's default to the student's."""
    return (tap,), (tap if teacher_tap is None else teacher_tap,)


def vectors(features: Tensor) -> Tensor:
    """One vector a sample: [N,...] -> [N,D], at least float32."""
    return at_least_float32(features).flatten(1)


def same_size(student: Tensor, teacher: Tensor, pool: Any = F.adaptive_avg_pool2d) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller height and width of both: [N,C,H,W], [N,C',H',W'] -> [N,C,h,w], [N,C',h,w].

    Args:
        student, teacher: at least float32.
        pool: (maps, [h, w]) -> maps of that size; the average by default.
    """
    size = [min(ours, theirs) for ours, theirs in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    student, teacher = (maps if list(maps.shape[2:]) == size else pool(maps, size) for maps in (student, teacher))
    return student, teacher


def pooled(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps average-pooled to another height and width: [N,C,H,W] -> [N,C,*size]."""
    height, width = size
    return F.adaptive_avg_pool2d(maps, (height, width))


def product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product in the precision of its factors: autocast would compute Gram matrices in half precision,
    whose few digits do not survive the differences that relational terms take of them."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right
