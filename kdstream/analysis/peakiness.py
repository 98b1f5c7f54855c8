"""Peakiness: how sure a teacher is of its answers for the original images and for their coded (JPEG) versions.

Salamah, Hamidi & Yang, "A coded knowledge distillation framework for image classification based on adaptive JPEG
encoding" (the seed paper), section 4.2, Table 1, and appendix A, Table A.8.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdstream.analysis import plot
from kdstream.analysis.one_pass import one_pass
from kdstream.batch import Batch, Outputs
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.exact import exact, exact_device
from kdstream.stream.coded import coded
from kdstream.stream.teacher import answer

BINS = 50
"""Of the histograms of entropy and ground-truth probability."""

SUBSET = 320
"""Images over which Wang et al.'s published code averages each mean probability: 5 batches of 64."""

COVARIANCE = (
    "mean of |S_ij| over all C x C entries of the sample covariance matrix S of the probability vectors, temperature 1"
)
"""The estimator behind :attr:`Answers.covariance`, in words."""

_ORIGINAL, _CODED = plot.BLUE, plot.VERMILION


class Moments:
    """Mean and covariance of vectors that come in batches, in float64 and in memory D x D.

    Batches are merged by the pairwise update of Chan, Golub & LeVeque 1983, "Algorithms for computing the sample
    variance: analysis and recommendations", which, unlike sums of squares, loses no digits where the spread is small.

    Args:
        size: D.
        device: of the vectors.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu"):
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=exact_device(device))
        self.scatter = torch.zeros(size, size, dtype=torch.float64, device=exact_device(device))

    def add(self, values: Tensor) -> None:
        """Take n more vectors, float [n,D]."""
        values = exact(values)
        n = len(values)
        if n == 0:
            return
        mean = values.mean(0)
        centred = values - mean
        shift = mean - self.mean
        total = self.count + n
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * n / total)
        self.mean += shift * (n / total)
        self.count = total

    def covariance(self) -> Tensor:
        """The unbiased sample covariance, float64 [D,D]; needs two vectors or more."""
        return self.scatter / (self.count - 1)


@dataclass(frozen=True)
class Answers:
    """What a teacher's answers look like, over a whole split, at temperature 1.

    Attributes:
        entropy_mean, entropy_std: of H(p) = -sum_c p_c ln p_c, in nats, 0..ln C.
        probability_mean, probability_std: of the ground-truth class's probability, 0..1.
        top1: percent of images whose most probable class is the right one.
        covariance: mean_ij |S_ij|, where S = 1/(N-1) sum_n (p_n - m)(p_n - m)^T is the sample covariance matrix [C,C]
            of the N probability vectors p_n and m is their mean.
        mean_probability_std: mean_c sqrt(S_cc / 320), the "T. stddev" of Wang et al.: the standard deviation of the
            teacher's mean probability over random subsets of 320 images, averaged over the classes.
        entropy_histogram: images in each of :data:`BINS` equal bins of 0..ln C.
        probability_histogram: images in each of :data:`BINS` equal bins of 0..1.

    Table A.8 of the seed paper estimates the covariance "exactly" as Wang, Lohit, Jones & Fu 2022, "What makes a 'good'
    data augmentation in knowledge distillation - a statistical perspective", without a formula, and that work has
    several: its headline metric is the T. stddev; its published code can also take, batch by batch, the mean absolute
    entry of the covariance matrix of the classes, which is ``covariance`` here but for being over the whole split. (The
    plain mean of S is always 0, because probabilities sum to 1.) Neither need be the table's number: nearly one-hot
    answers for C classes of equal size give ``covariance`` close to 2 (C-1) / C^3, 19.8e-5 for CIFAR-100, where Table
    A.8 has up to 61.2e-5. Compare original and coded by the same estimator, not with the table.

    Standard deviations have the denominator N - 1.
    """

    entropy_mean: float
    entropy_std: float
    probability_mean: float
    probability_std: float
    top1: float
    covariance: float
    mean_probability_std: float
    entropy_histogram: tuple[int, ...]
    probability_histogram: tuple[int, ...]


@dataclass(frozen=True)
class Peakiness:
    """A teacher's answers for the originals and for the versions that the selector chose.

    Attributes:
        samples: N, images.
        classes: C.
        original, coded: the answers.
        qualities: JPEG quality of the chosen version, -1 = the original, -> images; by rising quality.
    """

    samples: int
    classes: int
    original: Answers
    coded: Answers
    qualities: dict[int, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; the qualities' keys are texts."""
        return {**asdict(self), "qualities": {str(quality): count for quality, count in self.qualities.items()}}


class Tally:
    """Running statistics of answers: what becomes :class:`Answers`.

    Args:
        classes: C.
        device: of the answers.
    """

    def __init__(self, classes: int, device: torch.device):
        self.probabilities = Moments(classes, device)
        self.scalars = Moments(2, device)  # entropy, ground-truth probability
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.histograms = torch.zeros(2, BINS, dtype=torch.int64, device=exact_device(device))
        # With a single class every entropy is 0, and any positive width will do.
        self.ends = torch.tensor([math.log(max(classes, 2)), 1.0], dtype=torch.float64, device=exact_device(device))

    def add(self, logits: Tensor, label: Tensor) -> None:
        """Take the answers [n,C] to n more images, whose classes are int64 [n]."""
        log_p = exact(logits).log_softmax(1)
        p = log_p.exp()
        # p ln p is 0 at p = 0, where ln p may be -inf.
        entropy = -torch.where(p > 0, p * log_p, 0.0).sum(1)
        scalars = torch.stack([entropy, p.gather(1, label.to(p.device)[:, None])[:, 0]], dim=1)
        self.probabilities.add(p)
        self.scalars.add(scalars)
        self.correct += (logits.argmax(1) == label).sum()
        bins = (scalars / self.ends * BINS).nan_to_num().long().clamp(0, BINS - 1)
        for histogram, bin in zip(self.histograms, bins.T, strict=True):
            histogram += torch.bincount(bin, minlength=BINS)

    def result(self) -> Answers:
        """Of all so far, two images at least."""
        covariance = self.probabilities.covariance()
        entropy, probability = self.scalars.mean.tolist()
        entropy_std, probability_std = self.scalars.covariance().diagonal().sqrt().tolist()
        return Answers(
            entropy_mean=entropy,
            entropy_std=entropy_std,
            probability_mean=probability,
            probability_std=probability_std,
            top1=100 * self.correct.item() / self.scalars.count,
            covariance=covariance.abs().mean().item(),
            mean_probability_std=(covariance.diagonal() / SUBSET).sqrt().mean().item(),
            entropy_histogram=tuple(self.histograms[0].tolist()),
            probability_histogram=tuple(self.histograms[1].tolist()),
        )


def peakiness(
    teacher: Callable[[Tensor], Outputs],
    shards: ShardSet,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    selector: Any = "hkl",
    delta: int = 10,
    subsampling: str = "4:4:4",
    size: int | None = None,
    limit: int | None = None,
    batch_size: int = 100,
    workers: int = 0,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] = lambda count: None,
) -> Peakiness:
    """Measure a teacher on the unaugmented images of a split, original and coded in one pass.

    The selector needs the teacher's answer for the original anyway, so both columns cost one teacher pass over the
    original and its versions.

    Args:
        teacher: float [n,3,H,W], standardised -> Outputs; on ``device``.
        shards: the split.
        mean, std: by channel, of images in [0,1], as the teacher was trained.
        selector, delta, subsampling: see :func:`kdstream.stream.coded.coded`.
        size: cut the central square to size x size first, as ``augment(eval, size)``; needed where images differ in
            size.
        limit: at most so many images, 2 or more: the first of a fixed random order, so that a set that is sorted by
            class still gives all classes.
        batch_size: images at a time.
        workers: reader processes.
        device: where JPEG and teacher run.
        advance: told how many more images are done.

    Raises:
        UserError: settings out of range, fewer than two images, images of different sizes without ``size``, a teacher
            for another number of classes or whose answers are not finite.
    """
    if limit is not None and limit < 2:
        raise UserError(f"limit is {limit}: standard deviations need 2 images or more")
    if len(shards) < 2:
        raise UserError(f"{shards.name}/{shards.split} has {len(shards)} image: standard deviations need 2 or more")
    batches = one_pass(
        shards,
        coded(selector, delta, subsampling),
        size=size,
        limit=limit,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    if isinstance(teacher, nn.Module):
        teacher.eval()
    original = Tally(shards.num_classes, torch.device(device))
    chosen = Tally(shards.num_classes, torch.device(device))
    qualities: Counter[int] = Counter()
    memory: dict[str, int] = {}
    for batch in batches:
        answered = _both(batch, teacher, mean, std, memory)
        assert answered.teacher is not None
        assert answered.quality is not None
        logits = answered.teacher.logits
        if logits.shape[1] != shards.num_classes:
            raise UserError(f"the teacher is for {logits.shape[1]} classes, the data has {shards.num_classes}")
        original.add(answered.teacher.features["original"], batch.label)
        chosen.add(logits, batch.label)
        qualities.update(answered.quality.tolist())
        advance(len(batch))
    chosen_qualities = dict(sorted(qualities.items()))
    count = sum(chosen_qualities.values())
    result = Peakiness(count, shards.num_classes, original.result(), chosen.result(), chosen_qualities)
    if not all(math.isfinite(part.covariance) for part in (result.original, result.coded)):
        raise UserError("the teacher's answers are not all finite numbers: its weights are damaged or for other images")
    return result


def _both(
    batch: Batch,
    teacher: Callable[[Tensor], Outputs],
    mean: Sequence[float],
    std: Sequence[float],
    memory: dict[str, int],
) -> Batch:
    """The batch with the teacher's answer for the chosen version, and as feature ``original`` [N,C] the logits for the
    original image."""
    assert batch.qualities is not None
    versions = 1 + batch.qualities.shape[1]

    def with_original(images: Tensor) -> Outputs:
        logits = teacher(images).logits
        by_image = logits.unflatten(0, (-1, versions))
        return Outputs(logits, {"original": by_image[:, :1].expand_as(by_image).flatten(0, 1)})

    # fixed and random offer one version and no choice; a rule that takes it makes the teacher see the original as well.
    rule = batch.selector if batch.selector is not None else _the_one_version
    return answer(replace(batch, selector=rule), with_original, mean, std, memory)


def _the_one_version(logits: Tensor, label: Tensor) -> Tensor:
    return torch.ones_like(label)


# ---- the figure


def figure(result: Peakiness, title: str) -> bytes:
    """Histograms of entropy, ground-truth probability and chosen qualities, original against coded, as a PNG."""
    from matplotlib.ticker import FormatStrFormatter

    canvas = plot.canvas(12.5, 3.9, title)
    entropy, probability, quality = canvas.subplots(1, 3)
    before, after = result.original, result.coded
    _compare(entropy, before.entropy_histogram, after.entropy_histogram, math.log(max(result.classes, 2)))
    _compare(probability, before.probability_histogram, after.probability_histogram, 1.0)
    entropy.set_title(_means("Entropy", before.entropy_mean, after.entropy_mean), fontsize=10)
    entropy.set_xlabel(f"entropy in nats (uniform over {result.classes} classes: right edge)")
    probability.set_title(_means("Ground truth", before.probability_mean, after.probability_mean), fontsize=10)
    probability.set_xlabel("probability of the ground-truth class")
    for axes, corner in ((entropy, "upper right"), (probability, "upper left")):
        axes.legend(frameon=False, fontsize=9, loc=corner)
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    _bars(quality, result.qualities)
    quality.set_title("Chosen versions", fontsize=10)
    for axes in (entropy, probability, quality):
        axes.set_ylabel("% of images" + ("" if axes is quality else ", log scale"))
    plot.plain(entropy, probability, quality)
    return plot.png(canvas)


def _means(what: str, before: float, after: float) -> str:
    return f"{what}: mean {before:.3f} original, {after:.3f} coded"


def _compare(axes: Any, before: Sequence[int], after: Sequence[int], end: float) -> None:
    """Two histograms over 0..end: shares in percent, logarithmic because nearly all originals are in one bin."""
    edges = [end * i / BINS for i in range(BINS + 1)]
    total = sum(before)
    # Line style and fill tell them apart without colour.
    for name, counts, colour, style, alpha in (
        ("original", before, _ORIGINAL, "-", 0.15),
        ("coded", after, _CODED, "--", 0.30),
    ):
        shares = [100 * count / total for count in counts]
        axes.stairs(shares, edges, fill=True, color=colour, alpha=alpha)
        axes.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.6, label=name)
    axes.set_yscale("log")
    axes.set_ylim(100 / total / 2, 160)
    axes.set_xlim(0, end)


def _bars(axes: Any, qualities: dict[int, int]) -> None:
    """One bar a quality; the original stands apart at the left."""
    total = sum(qualities.values())
    coded = {quality: count for quality, count in qualities.items() if quality >= 0}
    steps = [b - a for a, b in zip(sorted(coded), sorted(coded)[1:], strict=False)]
    width = 0.8 * min(min(steps, default=10), 10)
    apart = -18
    axes.bar(list(coded), [100 * count / total for count in coded.values()], width, color=_CODED)
    axes.bar([apart], [100 * qualities.get(-1, 0) / total], 8, color=_ORIGINAL, hatch="//", edgecolor="white")
    axes.set_xticks([apart, *range(0, 101, 20)], ["original", *map(str, range(0, 101, 20))])
    axes.set_xlim(apart - 10, 108)
    axes.set_xlabel("JPEG quality")
