"""Selection: what a teacher answers to one image at every JPEG quality, and which version is chosen.

Salamah, Hamidi & Yang, "A coded knowledge distillation framework for image classification based on adaptive JPEG
encoding" (the seed paper), section 4.2, figure 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kdstream import jpeg
from kdstream.display.charts import Chart, Line, Plotter, nth_look
from kdstream.display.figures_page import Cells, FiguresPage
from kdstream.exact import exact
from kdstream.jpeg.reference import Subsampling
from kdstream.stream.coded import hkl


@dataclass(frozen=True)
class Version:
    """A version of an image.

    Attributes:
        quality: JPEG's; -1 = the original.
        kl: divergence of its answer from the original's, KL(p(I) || p(I_j)), in nats.
        entropy: of its answer, in nats.
        probability: of the right class.
        answer: the most probable class.
        correct, chosen: whether that is right; whether the selector takes this version.
    """

    quality: int
    kl: float
    entropy: float
    probability: float
    answer: int
    correct: bool
    chosen: bool


@torch.no_grad()
def selection(
    teacher: Callable[[Tensor], Tensor],
    image: Tensor,
    label: int,
    delta: int = 5,
    subsampling: Subsampling = "4:4:4",
) -> list[Version]:
    """The original and its versions at qualities 0, delta, ... up to 100.

    Args:
        teacher: uint8 [n,3,H,W] -> logits [n,C].
        image: uint8 [3,H,W].
        label: its class.
        delta, subsampling: see :func:`kdstream.stream.coded.coded`.
    """
    qualities = list(range(0, 101, delta))
    versions = torch.cat([image[None], jpeg.roundtrip(image[None], qualities, subsampling)[0]])
    logits = teacher(versions)
    log_p = exact(logits).log_softmax(1)
    p = log_p.exp()
    pick = int(hkl(logits[None], torch.tensor([label], device=logits.device)))
    kl, entropy = (p[:1] * (log_p[:1] - log_p)).sum(1).tolist(), (-(p * log_p).sum(1)).tolist()
    answers = logits.argmax(1).tolist()
    return [
        Version(quality, max(kl[i], 0.0), entropy[i], float(p[i, label]), answers[i], answers[i] == label, i == pick)
        for i, quality in enumerate([-1, *qualities])
    ]


def page(teacher: str, images: Sequence[tuple[str, int, list[Version]]], classes: Sequence[str]) -> FiguresPage:
    """Tables and charts.

    Args:
        teacher: its name.
        images: name, class and versions of each image.
        classes: names.
    """
    draw = Plotter()
    tables, charts = [], []
    for name, label, versions in images:
        rows = []
        for one in versions:
            said = ", ".join(filter(None, ["right" if one.correct else "", "chosen" if one.chosen else ""]))
            cells = [f"{one.kl:.4f}", f"{one.entropy:.4f}", f"{one.probability:.4f}", classes[one.answer], said]
            rows.append(("original" if one.quality < 0 else str(one.quality), cells))
        pick = next(i for i, one in enumerate(versions) if one.chosen)
        best = frozenset((pick, j) for j in range(5))
        tables.append(Cells(f"{name} ({classes[label]})", "quality", ("KL", "H", "P", "answer", ""), rows, best))
        charts.append(_chart(draw, f"{name} ({classes[label]})", versions))
    title = "Selection by quality"
    return FiguresPage(title, f"by {teacher}", tables, [chart for chart in charts if chart is not None], FACTS)


FACTS = (
    ("KL", "divergence of the version's answer from the original's, KL(p(I) || p(I_j)), nats"),
    ("H", "entropy of the answer, nats; its most is the logarithm of the number of classes"),
    ("P", "probability of the right class"),
    ("chosen", "of the versions classified correctly, the original among them, the one of largest KL (equation 4)"),
    ("in the figure", "dots: classified correctly; the upright stroke: the chosen version"),
)


def _chart(draw: Plotter, title: str, versions: Sequence[Version]) -> Chart | None:
    coded = [one for one in versions if one.quality >= 0]
    lines, looks = [], []
    for i, (name, key) in enumerate((("KL, nats", "kl"), ("H, nats", "entropy"), ("P", "probability"))):
        look = nth_look(name, i)
        looks.append(look)
        lines.append(Line([one.quality for one in coded], [getattr(one, key) for one in coded], i, dots=False))
        right = [one for one in coded if one.correct]
        # Points without a line between them: gaps part them.
        x = [float(value) for one in right for value in (one.quality, one.quality)]
        y = [value for one in right for value in (getattr(one, key), float("nan"))]
        lines.append(Line(x, y, i))
    pick = next(one for one in versions if one.chosen)
    top = max(max(one.kl, one.entropy, 1.0) for one in coded)
    if pick.quality >= 0:
        lines.append(Line([pick.quality] * 2, [0.0, top], None, "dotted", dots=False))
    note = "the original is chosen" if pick.quality < 0 else f"chosen: {pick.quality}"
    if (chart := draw.lines(title, lines, note, over="JPEG quality")) is not None:
        chart.looks = looks
    return chart


def as_dict(versions: Sequence[Version]) -> list[dict[str, Any]]:
    """Plain JSON values."""
    return [asdict(one) for one in versions]
