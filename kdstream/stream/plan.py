"""Which samples form which batch: a pure function of (size, seed, epoch, step), in O(1) memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kdstream.errors import UserError
from kdstream.rng import mix, sample_keys
from kdstream.stream.kernels import permuted

ROUNDS = 8


def permute(position: Tensor, size: int, key: int) -> Tensor:
    """A keyed permutation of 0..size-1, evaluated at ``position``.

    A Feistel network over the rectangle a x b with a = ceil(sqrt(size)), b = ceil(size / a): the two coordinates take
    turns in being shifted by a hash of the other, which is invertible for any key. The rectangle has fewer than
    size + a cells; a value beyond ``size`` is sent through again until it falls inside (cycle-walking; Black & Rogaway
    2002, "Ciphers with arbitrary finite domains").

    Args:
        position: int64 [N], each in 0..size-1.
        size: at least 1.
        key: 64-bit integer.

    Returns:
        int64 [N], the permuted positions.
    """
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    value = position.clone()
    outside = torch.ones_like(value, dtype=torch.bool)
    while bool(outside.any()):
        row, column = value[outside] // b, value[outside] % b
        for turn in range(ROUNDS):
            if turn % 2 == 0:
                row = (row + _hash(column, key, turn)) % a
            else:
                column = (column + _hash(row, key, turn)) % b
        value[outside] = row * b + column
        outside = value >= size
    return value


def _hash(value: Tensor, key: int, turn: int) -> Tensor:
    """A non-negative int64 (62 bits, so that adding a coordinate cannot overflow)."""
    return mix(mix(value ^ key) + turn) & ((1 << 62) - 1)


@dataclass(frozen=True)
class Plan:
    """The order of a data set.

    Attributes:
        size: number of samples.
        batch_size: samples in a *global* batch, all ranks together.
        seed: of the order.
        shuffle: False = natural order (evaluation).
        group: so many neighbours of a batch, from its first sample on, stay in one rank's slice.

    Batches are full except that, where ``batch_size`` does not divide ``size``, the last two share what is left
    evenly: no batch is smaller than half of ``batch_size``, so batch statistics stay sound and every rank gets samples.
    """

    size: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    group: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError("the data set is empty: there is nothing to plan")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}: it must be at least 1")

    @property
    def steps(self) -> int:
        """Global batches in an epoch, the same for every rank."""
        return -(-self.size // self.batch_size)

    def bounds(self, step: int) -> tuple[int, int]:
        """First and last-plus-one position of a global batch in the epoch's order."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        last_two = (self.steps - 2) * self.batch_size
        if self.steps < 2 or step < self.steps - 2 or self.size % self.batch_size == 0:
            return step * self.batch_size, min((step + 1) * self.batch_size, self.size)
        middle = last_two + (self.size - last_two + 1) // 2
        return (last_two, middle) if step == self.steps - 2 else (middle, self.size)

    def smallest_slice(self, world: int) -> int:
        """The fewest samples that one of ``world`` ranks gets in any step; 0 where a batch has fewer than ranks."""
        bounds = [self.bounds(step) for step in {0, max(self.steps - 2, 0), self.steps - 1}]
        cuts = [[self._cut(stop - start, rank, world) for rank in range(world + 1)] for start, stop in bounds]
        return min(end - begin for each in cuts for begin, end in pairwise(each))

    def _cut(self, count: int, rank: int, world: int) -> int:
        """Where a rank's slice of ``count`` samples begins, and that of the rank before it ends."""
        groups = -(-count // self.group)
        return min(groups * rank // world * self.group, count)

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Tensor:
        """Indices of the samples of one batch.

        Args:
            epoch: counted from 0.
            step: 0..steps-1.
            rank: whose slice, 0..world-1.
            world: number of ranks; their slices, joined in order, are the global batch.

        Returns:
            int64 [n]; slices differ by one group at most.
        """
        position = self._positions(step, rank, world)
        return permute(position, self.size, self._key(epoch)) if self.shuffle else position

    def batches(self, epoch: int, steps: Sequence[int], rank: int = 0, world: int = 1) -> list[Tensor]:
        """What :meth:`batch` gives for each of these steps, worked out together, which is faster."""
        parts = [self._positions(step, rank, world) for step in steps]
        if not self.shuffle or not parts:
            return parts
        position, key = torch.cat(parts), self._key(epoch)
        order = permuted(position, self.size, key, ROUNDS)
        if order is None:
            order = permute(position, self.size, key)
        return list(order.split([len(part) for part in parts]))

    def _positions(self, step: int, rank: int, world: int) -> Tensor:
        """Where the samples of a batch stand in the epoch's order."""
        start, stop = self.bounds(step)
        count = stop - start
        return torch.arange(start + self._cut(count, rank, world), start + self._cut(count, rank + 1, world))

    def _key(self, epoch: int) -> int:
        return int(sample_keys(self.seed, epoch, torch.tensor([-1])))
