"""Which training samples CRD contrasts a sample with: drawn on the device, without loops and without rejection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdstream.errors import UserError
from kdstream.exact import exact
from kdstream.rng import words

_LOW = (1 << 32) - 1


def _draws(key: Tensor, count: int) -> Tensor:
    """``count`` independent integers in 0..2^32-1 for every key: int64 [N] -> int64 [N,count]."""
    halves = words(key, -(-count // 2), "crd").view(torch.int32)  # two draws a word
    return halves[:, :count].to(torch.int64).bitwise_and_(_LOW)


def _below(bound: Tensor, draws: Tensor) -> Tensor:
    """Uniform integers in 0..bound-1 from uniform ones in 0..2^32-1, for bounds below 2^31."""
    return (bound * draws).bitwise_right_shift_(32)


def _where_negative(value: Tensor, amount: Tensor) -> Tensor:
    """``amount`` where ``value`` < 0, else 0; several times faster on a CPU than a choice by booleans."""
    return (value >> 63).bitwise_and_(amount)


class Contrast(nn.Module):
    """Draws positive and negatives from the classes of the training samples.

    The draw depends on nothing but the samples' keys: the same global batch has the same negatives on any number of
    processes. Negatives lie in a table sorted by class, where those of other classes are what is left when one run is
    skipped. That table, turned by a random offset, is cut into ``negatives`` stretches of (nearly) equal length, and
    one sample is drawn from each: every sample of another class has exactly the same probability and none comes twice,
    as in the authors' code, at a cost that does not grow with the data set; the classes are represented more evenly
    than independent draws would. Only where there are fewer candidates than ``negatives`` are the draws independent.

    Args:
        labels: int64 [num_samples], classes from 0.
        negatives: K, at least 1.
        relaxed: the positive is a random sample of the class (itself included) instead of the sample itself.

    Raises:
        UserError: a class to which all samples belong, so that there is no negative.
    """

    labels: Tensor
    order: Tensor
    first: Tensor
    sizes: Tensor

    def __init__(self, labels: Tensor, negatives: int, relaxed: bool):
        super().__init__()
        self.negatives, self.relaxed = negatives, relaxed
        sizes = torch.bincount(labels)
        if int(sizes.max()) == len(labels):
            raise UserError("crd: all training samples are of one class, so there is nothing to contrast them with")
        # Not part of a checkpoint: they follow from the data set.
        self.register_buffer("labels", labels.clone(), persistent=False)
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)
        self.register_buffer("first", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)

    def forward(self, index: Tensor, key: Tensor | None = None) -> Tensor:
        """The samples to compare with.

        Args:
            index: int64 [N], positions in the data set.
            key: int64 [N], random keys; None: the index is the key.

        Returns:
            int64 [N,1+K]: the positive, then the negatives.
        """
        own = self.labels[index]
        first, size = self.first[own, None], self.sizes[own, None]
        candidates = len(self.order) - size
        enough = candidates >= self.negatives
        offset, choice, jitter = _draws(index if key is None else key, self.negatives + 3).split_with_sizes(
            (1, 1, self.negatives + 1), dim=1
        )
        # Stretch k of the table is [cut k, cut k+1); one more, empty and first, keeps the place of the positive. Where
        # candidates are too few, every stretch is the whole table.
        steps = exact(torch.arange(-1, self.negatives + 1, device=index.device)).clamp_(min=0)
        cuts = (steps * (candidates * enough).to(steps.device)).div_(self.negatives).floor_()  # exact: all below 2^53
        cuts = cuts.to(index)
        place = _below(cuts.diff(dim=1).add_(candidates * ~enough), jitter)
        place.add_(cuts[:, :-1]).add_(_below(candidates, offset)).sub_(candidates)
        place.add_(_where_negative(place, candidates))  # the table turned by the offset
        place.add_(size).sub_(_where_negative(place - (first + size), size))  # the own class skipped
        chosen = self.order[place]
        chosen[:, 0] = self.order[first + _below(size, choice)].squeeze(1) if self.relaxed else index
        return chosen
