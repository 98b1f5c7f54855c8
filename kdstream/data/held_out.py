"""A part of a training split held out of it, to choose settings by: the same share of every class, drawn by number."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from kdstream.data.shard_set import ShardSet
from kdstream.errors import UserError

if TYPE_CHECKING:
    from kdstream.batch import Sample


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which samples are held out: of every class the same share, rounded, and at least one where it has two or more.

    Args:
        labels: int64 [n].
        share: 0..1.
        seed: of the draws, which depend on it and on the sample's number alone.

    Returns:
        bool [n].
    """
    import torch  # opening shards does without it

    from kdstream.rng import sample_keys, uniform

    order = uniform(sample_keys(seed, 0, torch.arange(len(labels))), 1, "hold_out").double().numpy()[:, 0]
    chosen = np.zeros(len(labels), bool)
    for number in np.unique(labels):
        own = np.flatnonzero(labels == number)
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        chosen[own[np.argsort(order[own], kind="stable")[:count]]] = True
    return chosen


class Part(ShardSet):
    """Some samples of a split, numbered anew, 0..n-1.

    Attributes:
        numbers: int64 [n], the samples' numbers in the split itself.
    """

    def __init__(self, base: ShardSet, numbers: np.ndarray, split: str, classes: int):
        """Samples ``numbers`` of ``base``, called ``split``; ``classes`` is the base's number of them, which a process
        that opens it anew is not told else."""
        base.number_classes(classes)
        self.__dict__.update(vars(base))
        self._made_of = (base, numbers, split, classes)
        self.numbers, self.split = numbers, split
        self.labels = base.labels[numbers]
        self.labels.flags.writeable = False
        told = json.dumps([base.fingerprint, hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()])
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[: len(base.fingerprint)]

    def __len__(self) -> int:
        return len(self.numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, self._made_of

    def key(self, index: int) -> str:
        return self._made_of[0].key(int(self.numbers[self._number(index)]))

    def read(self, index: int) -> Sample:
        """As :meth:`ShardSet.read`."""
        number = self._number(index)
        sample = self._made_of[0].read(int(self.numbers[number]))
        sample["index"] = number
        return sample


def divided(shards: ShardSet, share: float, seed: int = 0) -> tuple[ShardSet, ShardSet]:
    """A split without what is held out of it, and that.

    Args:
        shards: the split.
        share: see :func:`held_out`.
        seed: likewise.

    Raises:
        UserError: nothing could be held out.
    """
    chosen = held_out(shards.labels, share, seed)
    if not chosen.any():
        raise UserError(
            f"data.hold_out: no class of {shards.name}/{shards.split} has two samples, so nothing can be held out"
        )
    parts = (np.flatnonzero(~chosen), shards.split), (np.flatnonzero(chosen), f"{shards.split}, held out")
    first, second = (Part(shards, numbers, split, shards.num_classes) for numbers, split in parts)
    first.facts = {**shards.facts, "hold_out": {"share": share, "seed": seed, "samples": len(second)}}
    second.notes, second.facts = [], {}  # the first one's, which are of both
    return first, second
