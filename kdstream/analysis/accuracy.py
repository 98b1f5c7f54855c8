"""Accuracy: how often a network is right, how well it knows that, and which classes it takes for which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdstream.analysis import plot
from kdstream.analysis.one_pass import one_pass
from kdstream.batch import Batch
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.exact import exact, exact_device
from kdstream.stream.normalize import normalize

BINS = 15
"""Of the confidence, as in the experiments of Guo et al. 2017."""


@dataclass(frozen=True)
class Bin:
    """The samples whose confidence p (the largest probability) is in (low, high].

    Attributes:
        low, high: of the confidence, 0..1.
        samples: n.
        confidence: mean p, 0..1; None where n = 0.
        accuracy: percent of the samples whose most probable class is the right one; None where n = 0.
    """

    low: float
    high: float
    samples: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Accuracy:
    """What :func:`accuracy` finds.

    Attributes:
        classes: C names.
        top1, top5: percent of samples whose class is the most probable, or among the five most probable (top5 = top-C
            where there are fewer classes).
        loss: mean cross-entropy, nats.
        calibration_error: percent; the expected calibration error sum_m n_m / n |accuracy_m - confidence_m| over the
            :data:`BINS` bins (Guo, Pleiss, Sun & Weinberger 2017, "On calibration of modern neural networks", eq. 3).
        bins: of the confidence, from low to high.
        confusion: int64 [C,C]: samples by right class (row) and most probable class (column).
    """

    classes: tuple[str, ...]
    top1: float
    top5: float
    loss: float
    calibration_error: float
    bins: tuple[Bin, ...]
    confusion: np.ndarray

    @property
    def samples(self) -> int:
        """How many."""
        return int(self.confusion.sum())

    @property
    def per_class(self) -> list[float | None]:
        """Percent of each class's samples that are recognised; None where there are none."""
        right, counts = self.confusion.diagonal().tolist(), self.confusion.sum(1).tolist()
        return [100 * k / n if n else None for k, n in zip(right, counts, strict=True)]

    def mistakes(self, most: int) -> list[tuple[int, int, int]]:
        """The most frequent mistakes, as (right class, answer, samples)."""
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        rows, columns = np.nonzero(wrong)
        counts = wrong[rows, columns]
        order = np.argsort(-counts, kind="stable")[:most]
        return list(zip(rows[order].tolist(), columns[order].tolist(), counts[order].tolist(), strict=True))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; of the confusion matrix the entries above 0, as right class -> answer -> samples, by the
        classes' numbers."""
        return {
            "samples": self.samples,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "bins": [vars(bin) for bin in self.bins],
            "per_class": [
                {"class": name, "samples": int(row.sum()), "top1": top1}
                for name, row, top1 in zip(self.classes, self.confusion, self.per_class, strict=True)
            ],
            "confusion": {
                str(label): {str(answer): int(row[answer]) for answer in np.flatnonzero(row)}
                for label, row in enumerate(self.confusion)
                if row.any()
            },
        }


@torch.no_grad()
def accuracy(
    network: Callable[[Tensor], Tensor],
    shards: ShardSet,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    size: int | None = None,
    limit: int | None = None,
    batch_size: int = 100,
    workers: int = 0,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] = lambda count: None,
) -> Accuracy:
    """Measure a network on the unaugmented images of a split, each exactly once, as training evaluates it.

    Args:
        network: float [n,3,H,W], standardised -> logits [n,C]; on ``device``.
        shards: the split.
        mean, std: by channel, of images in [0,1], as the network was trained.
        size, limit, batch_size, workers, device: see :func:`kdstream.analysis.one_pass.one_pass`.
        advance: told how many more images are done.

    Raises:
        UserError: settings out of range, an empty split, images of different sizes without ``size``, a network for
            another number of classes or whose answers are not finite.
    """
    if not len(shards):
        raise UserError(f"{shards.name}/{shards.split} has no images")
    batches = one_pass(
        shards,
        normalize(mean=tuple(mean), std=tuple(std)),
        size=size,
        limit=limit,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    return of_batches(network, batches, shards.classes, device, advance)


@torch.no_grad()
def of_batches(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    names: Sequence[str],
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] = lambda count: None,
) -> Accuracy:
    """The same of any batches, each sample counted once.

    Args:
        network: float [n,3,H,W], standardised -> logits [n,C]; on ``device``.
        batches: at least one, on ``device``, their images standardised.
        names: of the C classes.
        device: where the sums are.
        advance: told how many more images are done.

    Raises:
        UserError: a network for another number of classes, or whose answers are not finite.
    """
    if isinstance(network, nn.Module):
        network.eval()
    score = Score(names, device)
    for batch in batches:
        score.add(network(batch.image), batch.label)
        advance(len(batch))
    return score.result()


class Score:
    """Running sums of answers: what becomes :class:`Accuracy`.

    Args:
        classes: C names.
        device: of the answers.
    """

    def __init__(self, classes: Sequence[str], device: torch.device | str):
        self.classes = tuple(classes)
        self.sums = torch.zeros(3, dtype=torch.float64, device=exact_device(device))  # loss, top-1, top-5
        self.confusion = torch.zeros(len(classes) ** 2, dtype=torch.int64, device=device)
        # Samples, confidence, correct.
        self.bins = torch.zeros(3, BINS, dtype=torch.float64, device=exact_device(device))

    def add(self, logits: Tensor, label: Tensor) -> None:
        """Take the answers [n,C] to n more images, whose classes are int64 [n].

        Raises:
            UserError: a network for another number of classes.
        """
        classes = len(self.classes)
        logits = logits.float()
        if logits.shape[1] != classes:
            raise UserError(f"the network is for {logits.shape[1]} classes, the data has {classes}")
        top = logits.topk(min(5, classes), dim=1).indices
        hits = top == label[:, None]
        loss = nn.functional.cross_entropy(logits, label, reduction="sum")
        self.sums += torch.stack([exact(part) for part in (loss, hits[:, 0].sum(), hits.any(1).sum())])
        self.confusion.index_add_(0, label * classes + top[:, 0], torch.ones_like(label))
        confidence = exact(logits).softmax(1).amax(1)
        # (m - 1) / M < p <= m / M is bin m, which is number m - 1 here.
        bin = (confidence * BINS).ceil().sub(1).nan_to_num().long().clamp(0, BINS - 1)
        self.bins.index_add_(1, bin, torch.stack([torch.ones_like(confidence), confidence, exact(hits[:, 0])]))

    def result(self) -> Accuracy:
        """Of all so far, one image at least.

        Raises:
            UserError: answers that are not finite.
        """
        if not self.sums.isfinite().all():
            raise UserError(
                "the network's answers are not all finite numbers: its weights are damaged or for other images"
            )
        classes = len(self.classes)
        count = int(self.confusion.sum())
        loss, first, five = self.sums.tolist()
        error = (self.bins[2] - self.bins[1]).abs().sum().item() / count
        return Accuracy(
            classes=self.classes,
            top1=100 * first / count,
            top5=100 * five / count,
            loss=loss / count,
            calibration_error=100 * error,
            bins=tuple(
                Bin(m / BINS, (m + 1) / BINS, int(n), p / n if n else None, 100 * k / n if n else None)
                for m, (n, p, k) in enumerate(self.bins.T.tolist())
            ),
            confusion=self.confusion.view(classes, classes).cpu().numpy(),
        )


# ---- the figures

_WITH_NUMBERS, _WITH_NAMES = 20, 128
"""Up to how many classes the matrix has its numbers written into it, and all classes named at its sides. With more,
neighbours are taken together, so that there is something to see: ImageNet's classes, for one, are in a sensible order.
"""
_LONGEST = 24
"""Letters of a class's name that a figure shows."""


def confusion_figure(result: Accuracy, title: str) -> bytes:
    """The confusion matrix in percent of each right class, beside the most frequent mistakes, as a PNG.

    Colours go with the square root of the share, so that mistakes are seen beside the diagonal.
    """
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    classes = len(result.classes)
    side = min(max(0.5 * classes, 6.0), 13.0)  # inches
    canvas = plot.canvas(1.45 * side + 4.5, side + 1.0, title)
    matrix, bars = canvas.subplots(1, 2, width_ratios=[side, 3.5])
    block = -(-classes // _WITH_NAMES)
    starts = range(0, classes, block)
    blocks = np.add.reduceat(np.add.reduceat(result.confusion, starts, axis=0), starts, axis=1)
    counts = blocks.sum(1)
    shares = 100 * blocks / np.maximum(counts, 1)[:, None]
    shares[counts == 0] = np.nan
    colours = colormaps["Blues"].with_extremes(bad="#DDDDDD")
    end = block * len(blocks) - 0.5
    image = matrix.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 100), extent=(-0.5, end, end, -0.5))
    canvas.colorbar(image, ax=matrix, fraction=0.03, pad=0.01, label="% of the right class's images")
    together = "" if block == 1 else f", by number, {block} together"
    matrix.set_xlabel(f"answer{together}")
    matrix.set_ylabel(f"right class{together}")
    if block == 1:
        size = min(10.0, 0.62 * 72 * side / classes)  # points: rows of text must not touch
        names = [_short(name) for name in result.classes]
        matrix.set_xticks(range(classes), names, rotation=90, fontsize=size, parse_math=False)
        matrix.set_yticks(range(classes), names, fontsize=size, parse_math=False)
        matrix.tick_params(length=2, pad=1)
    if classes <= _WITH_NUMBERS:
        for row, column in zip(*np.nonzero(blocks), strict=True):
            share = shares[row, column]
            text = f"{share:.1f}" if share < 99.95 else "100"
            matrix.text(column, row, text, ha="center", va="center", fontsize=8, color="w" if share > 40 else "k")
    _bars(bars, result, rows=round(3.2 * side))
    return plot.png(canvas)


def reliability_figure(result: Accuracy, title: str) -> bytes:
    """The reliability diagram: accuracy against confidence, above how many samples are that sure, as a PNG."""
    canvas = plot.canvas(5.6, 6.4, title)
    upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    width = 1 / BINS
    filled = [
        (bin.low, bin.accuracy, 100 * bin.confidence - bin.accuracy, 100 * bin.samples / result.samples)
        for bin in result.bins
        if bin.confidence is not None and bin.accuracy is not None
    ]
    lows, reached, gaps, shares = ([each[i] for each in filled] for i in range(4))
    edge = {"edgecolor": "white", "linewidth": 0.8}
    upper.bar(lows, reached, width, align="edge", color=plot.BLUE, label="accuracy", **edge)
    hatched = {"facecolor": "none", "edgecolor": plot.VERMILION, "hatch": "////", "linewidth": 1.0}
    upper.bar(lows, gaps, width, reached, align="edge", label="gap to the confidence", **hatched)
    upper.plot([0, 1], [0, 100], color="0.3", linestyle="--", linewidth=1, label="perfectly calibrated")
    upper.set_ylim(0, 100)
    upper.set_xlim(0, 1)
    upper.set_ylabel("top-1 accuracy, %")
    upper.set_title(f"expected calibration error {result.calibration_error:.2f} %, {BINS} bins", fontsize=10)
    upper.legend(frameon=False, fontsize=9, loc="upper left")
    lower.bar(lows, shares, width, align="edge", color="0.55", **edge)
    lower.set_ylabel("% of images")
    lower.set_xlabel("confidence (probability of the answer)")
    plot.plain(upper, lower)
    return plot.png(canvas)


def _bars(axes: Any, result: Accuracy, rows: int) -> None:
    """The most frequent mistakes, by number, in percent of the right class's images."""
    counts = result.confusion.sum(1)
    found = result.mistakes(rows)
    shares = [100 * count / counts[label] for label, _, count in found]
    names = [f"{_short(result.classes[label])} → {_short(result.classes[answer])}" for label, answer, _ in found]
    axes.barh(range(len(found)), shares, 0.7, color=plot.VERMILION)
    axes.set_yticks(range(len(found)), names, fontsize=9, parse_math=False)
    axes.set_ylim(rows - 0.5, -0.5)  # the bars are as thick with two mistakes as with many
    axes.set_title("Most frequent mistakes" if found else "No mistakes", fontsize=10)
    axes.set_xlabel("% of the right class's images")
    axes.set_xlim(0, 1.18 * max(shares, default=1))
    for row, (share, (_, _, count)) in enumerate(zip(shares, found, strict=True)):
        axes.annotate(f"{count:,}", (share, row), (3, 0), textcoords="offset points", va="center", fontsize=8)
    plot.plain(axes, grid=None)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
