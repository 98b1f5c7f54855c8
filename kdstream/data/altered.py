"""A training split with changed labels or class sizes, without new shards: label noise, class imbalance, few images.

All are pure functions of (seed, number of the sample in its split). Source of the first two protocols: Sarfraz, Arani &
Zonooz 2020, "Knowledge distillation beyond model compression", sections IV-B and IV-C; a label-balanced part of the
images is what Salamah et al. (the seed paper on coded distillation), appendix B, take of ImageNet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdstream.data.shard_set import ShardSet
from kdstream.errors import UserError

if TYPE_CHECKING:
    from kdstream.batch import Sample
    from kdstream.recipe import Data


@dataclass(frozen=True)
class PowerLaw:
    """Class sizes from ``smallest`` (the first class) to ``largest`` (the last).

    Attributes:
        gamma: > 0; the smaller, the fewer classes are large.
        largest, smallest: samples of the last and the first class.
    """

    gamma: float
    largest: int
    smallest: int


def class_sizes(law: PowerLaw, classes: int) -> list[int]:
    r"""Samples of each class by the power law.

    .. math:: n_c = \Big[ \frac{a}{b + c^{-\gamma}} \Big], \quad n_1 = \text{smallest},\ n_C = \text{largest}

    a and b are solved for the two ends; [.] rounds to the nearest whole number. The paper writes (c - 1) for c, which
    has no value for its first class: here the classes count from 1.

    Args:
        law: of the sizes.
        classes: C >= 2.

    Raises:
        UserError: ends for which the law has no solution.
    """
    small, large = law.smallest, law.largest
    if large <= small:
        return [small] * classes
    power = np.arange(1, classes + 1, dtype=np.float64) ** -law.gamma
    # small (b + 1) = a = large (b + C^-gamma)
    b = (small - large * power[-1]) / (large - small)
    a = small * (b + 1)
    return [round(size) for size in (a / (b + power)).tolist()]


def noisy(labels: np.ndarray, rate: float, classes: int, seed: int) -> np.ndarray:
    """Labels of which each is replaced, with probability ``rate``, by a class drawn uniformly from all of them.

    Args:
        labels: int64 [n].
        rate: 0..1. A label's own class may be drawn: the share that changes is about rate (1 - 1/classes).
        classes: C.
        seed: of the draws, which depend on it and on the label's position alone.

    Returns:
        int64 [n], a new array.
    """
    changed = np.array(labels)
    for part in _parts(len(labels)):
        replace, drawn = _draws(part, seed, "label_noise")
        other = np.minimum((drawn * classes).astype(np.int64), classes - 1)
        changed[part] = np.where(replace < rate, other, changed[part])
    return changed


def kept(labels: np.ndarray, sizes: Sequence[int], seed: int) -> np.ndarray:
    """Which samples stay where every class keeps so many of its own, chosen at random.

    Args:
        labels: int64 [n].
        sizes: of the C classes.
        seed: of the draws. A class of more samples keeps those that it keeps when it has fewer.

    Returns:
        int64 [sum of sizes], rising.
    """
    best = [(np.zeros(0), np.zeros(0, np.int64)) for _ in sizes]  # of each class so far: the least draws, the numbers
    for part in _parts(len(labels)):
        order, _ = _draws(part, seed, "imbalance")
        here = np.asarray(labels[part])
        by_class = np.argsort(here, kind="stable")
        bounds = np.searchsorted(here[by_class], np.arange(len(sizes) + 1))
        for number, size in enumerate(sizes):
            own = by_class[bounds[number] : bounds[number + 1]]
            draws = np.concatenate([best[number][0], order[own]])
            numbers = np.concatenate([best[number][1], own + part.start])
            least = np.argsort(draws, kind="stable")[:size]
            best[number] = draws[least], numbers[least]
    return np.sort(np.concatenate([numbers for _, numbers in best]))


PART = 1 << 20
"""Samples that are looked at together: what is drawn for all of a split never stands in memory at once."""


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, min(start + PART, count)) for start in range(0, count, PART))


def _draws(part: slice, seed: int, salt: str) -> tuple[np.ndarray, np.ndarray]:
    """Two uniform numbers in [0,1) for each sample of a part."""
    import torch  # opening shards does without it

    from kdstream.rng import sample_keys, uniform

    drawn = uniform(sample_keys(seed, 0, torch.arange(part.start, part.stop)), 2, salt).double().numpy()
    return drawn[:, 0], drawn[:, 1]


class Altered(ShardSet):
    """A split whose labels and samples are changed; its samples are numbered anew, 0..n-1.

    Attributes:
        labels: int64 [n], as they are trained with.
        true_labels: int64 [n], as they stand in the shards.
        base: the split itself.
        numbers: int64 [n], the samples' numbers in it; a range where all are left.
    """

    def __init__(
        self, base: ShardSet, noise: float, law: PowerLaw | None, per_class: int | None, seed: int, classes: int
    ):
        """See :func:`alter`; ``classes`` is the base's number, which a process that opens it anew is not told else."""
        base.number_classes(classes)
        self.__dict__.update(vars(base))
        self._made_of = (base, noise, law, per_class, seed, classes)
        self.base = base
        self.numbers: np.ndarray | range = range(len(base))
        self.true_labels = base.labels
        self.facts = {}
        if law is not None:
            sizes = class_sizes(law, base.num_classes)
            self.numbers = _kept(base, sizes, seed, "imbalance", "lower largest or smallest")
            self.facts["imbalance"] = {**asdict(law), "seed": seed, "sizes": sizes}
        elif per_class is not None:
            self.numbers = _kept(base, [per_class] * base.num_classes, seed, "per_class", "lower it")
            self.facts["per_class"] = {"images": per_class, "seed": seed, "of": len(base)}
        if isinstance(self.numbers, np.ndarray):
            self.true_labels = base.labels[self.numbers]
        labels = self.true_labels
        if noise:
            # Drawn for the whole split: a label's fate does not depend on which others are kept.
            labels = noisy(base.labels, noise, base.num_classes, seed)
            labels = labels[self.numbers] if isinstance(self.numbers, np.ndarray) else labels
            changed = int((labels != self.true_labels).sum())
            self.facts["label_noise"] = {"rate": noise, "seed": seed, "changed": changed, "of": len(labels)}
        self.labels = labels
        self.labels.flags.writeable = False
        made_of = [base.fingerprint, noise, asdict(law) if law else None, seed, classes]
        told = json.dumps(made_of if per_class is None else [*made_of, per_class])
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[: len(base.fingerprint)]

    def __len__(self) -> int:
        return len(self.numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return Altered, self._made_of

    def key(self, index: int) -> str:
        return self.base.key(int(self.numbers[self._number(index)]))

    def read(self, index: int) -> Sample:
        """As :meth:`ShardSet.read`, with the label that is trained with as ``cls``."""
        number = self._number(index)
        sample = self.base.read(int(self.numbers[number]))
        sample["cls"] = str(int(self.labels[number])).encode()
        sample["index"] = number
        return sample


def _kept(base: ShardSet, sizes: Sequence[int], seed: int, setting: str, advice: str) -> np.ndarray:
    """As :func:`kept`, of a split.

    Raises:
        UserError: it has fewer samples of a class.
    """
    there = base.class_counts()
    for number, (size, count) in enumerate(zip(sizes, there.tolist(), strict=True)):
        if size > count:
            raise UserError(
                f"data.{setting} asks for {size:,} samples of class {base.classes[number]!r}, "
                f"{base.name}/{base.split} has {count:,}: {advice}"
            )
    return kept(base.labels, sizes, seed)


def alter(
    shards: ShardSet, noise: float = 0.0, law: PowerLaw | None = None, seed: int = 0, per_class: int | None = None
) -> ShardSet:
    """A split with changed labels or class sizes; the split itself where nothing is to change.

    Args:
        shards: the split.
        noise: see :func:`noisy`.
        law: see :func:`class_sizes`.
        seed: of all.
        per_class: so many samples of each class, where no ``law`` gives their numbers. With a larger number, the same
            samples and more.

    Raises:
        UserError: a class has fewer samples than ``law`` or ``per_class`` asks for.
    """
    if not noise and law is None and per_class is None:
        return shards
    return Altered(shards, noise, law, per_class, seed, shards.num_classes)


def as_asked(shards: ShardSet, data: Data) -> ShardSet:
    """A split with the changes that a recipe's ``data`` asks for; see :func:`alter`."""
    law = None if data.imbalance is None else PowerLaw(**data.imbalance.model_dump())
    return alter(shards, data.label_noise or 0.0, law, data.seed or 0, data.per_class)


def told(shards: ShardSet) -> list[str]:
    """What a user should know of the changes, a line each."""
    facts, lines = shards.facts, []
    if "imbalance" in facts:
        sizes = facts["imbalance"]["sizes"]
        shown = ", ".join(map(str, sizes if len(sizes) <= 10 else [*sizes[:4], "...", *sizes[-4:]]))
        lines.append(f"imbalance: {sum(sizes):,} samples are left, by class {shown}")
    if "per_class" in facts:
        few = facts["per_class"]
        lines.append(f"per_class: {len(shards):,} of {few['of']:,} samples are left, {few['images']:,} of each class")
    if "label_noise" in facts:
        noise = facts["label_noise"]
        share = 100 * noise["changed"] / max(noise["of"], 1)
        lines.append(f"label_noise: {noise['changed']:,} of {noise['of']:,} labels are changed ({share:.1f} %)")
    return lines
