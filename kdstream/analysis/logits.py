"""Logits: how far a student's are from its teacher's, class by class, and how the answers of both are distributed.

"Efficient and robust knowledge distillation from a stronger teacher based on correlation matching", figures 2, 6 and 9;
"Knowledge distillation based on transformed teacher matching", figure 3 (histograms of entropy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdstream.analysis.answers import LOGITS, agreement
from kdstream.analysis.peakiness import BINS
from kdstream.display.charts import Chart, Line, Plotter, nth_look
from kdstream.display.figures_page import Cells, FiguresPage
from kdstream.exact import exact


@dataclass(frozen=True)
class Answers:
    """Of a network.

    Attributes:
        name: of it.
        top1: percent.
        entropy: mean, nats.
        entropies: shares of the images in :data:`kdstream.analysis.peakiness.BINS` equal bins of 0..ln C.
        logits: shares of the logits, standardised over the classes of their image, in the bins of
            :data:`kdstream.analysis.answers.LOGITS`.
        correlation: float [C,C], of the logits of two classes over the images; NaN where a class's are all equal.
    """

    name: str
    top1: float
    entropy: float
    entropies: list[float]
    logits: list[float]
    correlation: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "correlation": _plain(self.correlation)}


@dataclass(frozen=True)
class Beside:
    """A student beside its teacher.

    Attributes:
        name: the student's.
        pearson, spearman, distance: means over images of what :func:`kdstream.analysis.answers.agreement` gives.
        distances: float [C,C]: mean |z_c - v_c| over the images of a class (row), logit by logit (column); NaN for a
            class without images.
        correlations: float [C,C]: |difference| of the two networks' correlation matrices.
    """

    name: str
    pearson: float
    spearman: float
    distance: float
    distances: Tensor
    correlations: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        matrices = {"distances": _plain(self.distances), "correlations": _plain(self.correlations)}
        return {**vars(self), **matrices}


def answers(name: str, logits: Tensor, label: Tensor) -> Answers:
    """What a network's logits float [N,C] look like; label int64 [N]."""
    z = exact(logits)
    log_p = z.log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    low, high, bins = LOGITS
    centred = z - z.mean(1, keepdim=True)
    standard = (centred / centred.square().mean(1, keepdim=True).sqrt()).nan_to_num()
    return Answers(
        name,
        100 * float(exact(logits.argmax(1) == label).mean()),
        float(entropy.mean()),
        _shares(entropy / math.log(max(z.shape[1], 2)) * BINS, BINS),
        _shares((standard.flatten() - low) / (high - low) * bins, bins),
        torch.corrcoef(z.T).reshape(z.shape[1], z.shape[1]),
    )


def beside(name: str, student: Tensor, teacher: Tensor, label: Tensor) -> Beside:
    """A student's logits float [N,C] beside its teacher's for the same images; label int64 [N]."""
    classes = student.shape[1]
    apart = (exact(student) - exact(teacher)).abs()
    sums = torch.zeros(classes, classes, dtype=apart.dtype).index_add_(0, label, apart)
    counts = torch.bincount(label, minlength=classes)[:, None]
    pearson, spearman, distance = agreement(student, teacher).mean(0).tolist()
    one, other = (torch.corrcoef(exact(z).T).reshape(classes, classes) for z in (student, teacher))
    return Beside(name, pearson, spearman, distance, sums / counts, (one - other).abs())


def page(
    teacher: Answers, students: Sequence[tuple[Answers, Beside]], classes: Sequence[str], about: str
) -> FiguresPage:
    """Tables and charts of a teacher and its students."""
    first = (teacher.name, ["-", "-", "-", "-", f"{teacher.entropy:.4f}", f"{teacher.top1:.2f}"])
    rows = [first]
    for own, one in students:
        off = one.correlations.nan_to_num().mean()
        cells = [f"{one.pearson:.4f}", f"{one.spearman:.4f}", f"{one.distance:.4f}", f"{off:.4f}"]
        rows.append((own.name, [*cells, f"{own.entropy:.4f}", f"{own.top1:.2f}"]))
    columns = ("Pearson", "rank", "|z - v|", "correlations apart", "entropy, nats", "top-1 %")
    draw = Plotter()
    charts: list[Chart] = []
    # One scale for all students, so that their shades compare.
    for title, key in (("Logits apart", "distances"), ("Correlations apart", "correlations")):
        matrices = {one.name: getattr(one, key) for _, one in students}
        top = max((float(matrix.nan_to_num().max()) for matrix in matrices.values()), default=0.0) or None
        ways = ("logit of", "images of") if key == "distances" else ("", "")
        for name, matrix in matrices.items():
            values = matrix.tolist()
            chart = draw.matrix(f"{title}: {name}", values, classes, across=ways[0], down=ways[1], top=top)
            charts.append(chart)
    networks = [teacher, *(own for own, _ in students)]
    looks = [nth_look(one.name, i) for i, one in enumerate(networks)]
    low, high, bins = LOGITS
    middles = [low + (i + 0.5) * (high - low) / bins for i in range(bins)]
    spread = [
        Line(middles, [100 * share for share in one.logits], look.colour, look.dash, dots=False)
        for look, one in zip(looks, networks, strict=True)
    ]
    density = [100 * (high - low) / bins * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) for x in middles]
    normal = Line(middles, density, None, "dotted", dots=False)
    note = "dotted: the standard normal distribution"
    width = math.log(max(len(classes), 2)) / BINS
    places = [(i + 0.5) * width for i in range(BINS)]
    entropies = [
        Line(places, [100 * share or math.nan for share in one.entropies], look.colour, look.dash)
        for look, one in zip(looks, networks, strict=True)
    ]
    for title, lines, said, log, over in (
        ("% of logits", [*spread, normal], note, False, "logit, standardised over the classes"),
        ("% of images", entropies, "", True, "entropy of the answer, nats"),
    ):
        if (drawn := draw.lines(title, lines, said, log=log, over=over)) is not None:
            drawn.looks = looks
            charts.append(drawn)
    table = Cells("student and teacher", "network", columns, rows)
    return FiguresPage(f"Logits beside those of {teacher.name}", about, [table], charts, FACTS)


FACTS = (
    ("Pearson, rank", "mean over images of the correlation of the two networks' logits, and of their ranks (Spearman)"),
    ("|z - v|", "mean over images and classes of the distance of the student's logits z from the teacher's v"),
    ("logits apart", "the same for the images of one class (row), logit by logit (column)"),
    (
        "correlations apart",
        "of the C x C matrices of correlations of two classes' logits over the images: |student's - teacher's|",
    ),
)


def _shares(places: Tensor, bins: int) -> list[float]:
    counts = torch.bincount(places.nan_to_num().long().clamp(0, bins - 1), minlength=bins)
    shares: list[float] = (counts / counts.sum()).tolist()
    return shares


def _plain(matrix: Tensor) -> list[list[float | None]]:
    return [[value if math.isfinite(value) else None for value in row] for row in matrix.tolist()]
