"""Spread over seeds: mean and deviation, and what of a difference between trainings the spread does not explain."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)
_MOST_DEGREES = 1000.0
"""Beyond, Student's distribution is the normal one to three digits."""


@dataclass(frozen=True)
class Spread:
    """Values of the same training by other seeds.

    Attributes:
        count: how many.
        mean: of them.
        std: their standard deviation, with n - 1; None for a single one.
    """

    count: int
    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of at least one value."""
        mean = math.fsum(values) / len(values)
        rest = math.fsum((value - mean) ** 2 for value in values)
        return cls(len(values), mean, math.sqrt(rest / (len(values) - 1)) if len(values) > 1 else None)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass(frozen=True)
class Difference:
    """A mean difference and its 95 % interval; None where the pairs show no spread: a single one, or equal ones, as
    the accuracies of few images, which are multiples of one over their number, may well be by chance."""

    pairs: int
    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.mean:+.2f}" + ("" if self.low is None else f" ({self.low:+.2f} to {self.high:+.2f})")


def paired(values: Mapping[int, float], first: Mapping[int, float], level: float = 0.95) -> Difference | None:
    """How much ``values`` are above ``first``, seed by seed: both with the same seed draw the same batches and views.

    Args:
        values, first: seed -> value.
        level: of the interval, by Student's distribution with (pairs - 1) degrees of freedom.

    Returns:
        None where they have no seed in common.
    """
    common = sorted(set(values) & set(first))
    if not common:
        return None
    found = Spread.of([values[seed] - first[seed] for seed in common])
    if not found.std or found.std < 1e-9:
        return Difference(found.count, found.mean, None, None)
    half = t_quantile(level, found.count - 1) * found.std / math.sqrt(found.count)
    return Difference(found.count, found.mean, found.mean - half, found.mean + half)


def t_probability(t: float, degrees: float) -> float:
    """How often Student's t is at least as far from 0 as ``t`` (two-sided), for degrees of freedom >= 1.

    With t = sqrt(degrees) tan(angle), the density is a power of the cosine, which a few nodes integrate.
    """
    degrees = min(degrees, _MOST_DEGREES)
    angle = math.atan(abs(t) / math.sqrt(degrees))
    half = (math.pi / 2 - angle) / 2
    tail = half * float(_WEIGHTS @ np.cos(angle + half * (_NODES + 1)) ** (degrees - 1))
    whole = math.sqrt(math.pi) / 2 * math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2))
    return min(tail / whole, 1.0)


@functools.cache
def t_quantile(level: float, degrees: float) -> float:
    """The t > 0 between whose negative and itself Student's distribution has the share ``level`` (0..1)."""
    degrees = min(degrees, _MOST_DEGREES)
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # in the angle, whose range is finite
        middle = (low + high) / 2
        inside = 1 - t_probability(math.sqrt(degrees) * math.tan(middle), degrees) < level
        low, high = (middle, high) if inside else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def welch(one: Spread, other: Spread) -> float | None:
    """How often two means of equal expectation are as far apart as these or further (two-sided p), their variances
    unequal (Welch 1947, with Satterthwaite's degrees of freedom).

    Returns:
        None where one of them shows no spread.
    """
    if one.std is None or other.std is None:
        return None
    a, b = one.std**2 / one.count, other.std**2 / other.count
    if a + b == 0:
        return 1.0 if one.mean == other.mean else 0.0
    degrees = (a + b) ** 2 / (a**2 / max(one.count - 1, 1) + b**2 / max(other.count - 1, 1))
    return t_probability((one.mean - other.mean) / math.sqrt(a + b), degrees)


def as_if_spread_alike(ours: Spread, value: float, runs: int) -> float | None:
    """The same where of the other side only the mean of ``runs`` values is known: it is taken to vary as ours do.

    Returns:
        None where ours show no spread.
    """
    if ours.std is None:
        return None
    error = ours.std * math.sqrt(1 / ours.count + 1 / runs)
    if error == 0:
        return 1.0 if ours.mean == value else 0.0
    return t_probability((ours.mean - value) / error, ours.count - 1)
