"""Curves: what the logs of finished or running trainings tell side by side, epoch by epoch, and what each cost.

Figures 1 and 2 of "Knowledge distillation based on transformed teacher matching" (entropy, divergence), figures 3 and 7
of "Efficient and robust knowledge distillation from a stronger teacher based on correlation matching" (correlations;
time, accuracy and parameters).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstream.display.charts import Chart, Line, Plotter, nth_look
from kdstream.display.figures_page import Cells, FiguresPage
from kdstream.display.numbers import format_seconds
from kdstream.errors import UserError
from kdstream.training.checkpoint import load_checkpoint
from kdstream.training.folder import LAST
from kdstream.training.metrics import read_metrics, read_speed

LOGGED = {
    "val/top1": "Validation top-1, %",
    "student/entropy": "Entropy of the student's answers, nats",
    "student/divergence": "D(p_T || q), nats",
    "student/pearson": "Pearson correlation of the logits",
    "student/spearman": "Rank correlation of the logits",
    "teacher/entropy": "Entropy of the teacher's answers, nats",
}
"""Name in the log -> heading of its chart."""


@dataclass(frozen=True)
class Course:
    """The course of a training's main phase.

    Attributes:
        name: what to call it.
        curves: name in the log -> epochs from 1, and values.
        top1: percent, of the result; of the last evaluation where there is none yet. None = unknown, as below.
        seconds: of the training.
        parameters: of what was exported.
        additional: numbers that the terms of the loss keep beside the student: connectors, branches, memories.
    """

    name: str
    curves: dict[str, tuple[list[int], list[float]]]
    top1: float | None
    seconds: float | None
    parameters: int | None
    additional: int | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        curves = {name: {"epoch": x, "value": y} for name, (x, y) in self.curves.items()}
        return {**vars(self), "curves": curves}


def course(name: str, folder: Path) -> Course:
    """Read a run folder.

    Raises:
        UserError: it holds no log, or a damaged one.
    """
    rows = [row for row in read_metrics(folder) if row.get("phase", "main") == "main"]
    if not rows:
        raise UserError(f"{folder} holds no metrics.jsonl with a finished epoch: name the folders of trainings")
    first = min(int(row["epoch"]) for row in rows) - 1
    curves = {}
    for key in LOGGED:
        known = [row for row in rows if isinstance(row.get(key), int | float)]
        if known:
            curves[key] = ([int(row["epoch"]) - first for row in known], [float(row[key]) for row in known])
    result = _result(folder)
    seconds = result.get("seconds") or sum(row.get("seconds") or 0.0 for row in read_speed(folder)) or None
    last = curves.get("val/top1", ([], [None]))[1][-1]
    return Course(name, curves, result.get("top1", last), seconds, result.get("params"), _additional(folder))


def page(courses: Sequence[Course]) -> FiguresPage:
    """Tables and charts of them."""
    draw = Plotter()
    charts: list[Chart] = []
    looks = [nth_look(one.name, i) for i, one in enumerate(courses)]
    for key, title in LOGGED.items():
        drawn = [(look, *one.curves[key]) for look, one in zip(looks, courses, strict=True) if key in one.curves]
        lines = [Line([float(epoch) for epoch in x], y, look.colour, look.dash) for look, x, y in drawn]
        if (chart := draw.lines(title, lines)) is not None:
            chart.looks = [look for look, *_ in drawn]
            charts.append(chart)
    points = [
        (one.name + (f", +{one.additional:,}" if one.additional else ""), one.seconds, one.top1, None)
        for one in courses
        if one.seconds is not None and one.top1 is not None
    ]
    if points:
        note = "and what is kept beside the student"
        charts.append(draw.scatter("Accuracy and cost", points, "seconds", "top-1, %", note))
    costs = ("top-1 %", "time", "parameters", "beside them")
    cost = Cells("what they cost", "training", costs, [(one.name, _costs(one)) for one in courses])
    last = Cells(
        "after the last epoch",
        "training",
        ("entropy, nats", "D(p_T || q)", "Pearson", "rank"),
        [(one.name, [_last(one, key) for key in list(LOGGED)[1:5]]) for one in courses],
    )
    old = [one.name for one in courses if "student/entropy" not in one.curves]
    notes = [f"trained by a version that did not log its student's answers: {', '.join(old)}"] if old else []
    return FiguresPage("Curves", "of the main phase, from the logs", [cost, last], charts, FACTS, notes)


FACTS = (
    ("images", "the augmented training images of an epoch, as student and teacher saw them"),
    ("entropy", "mean of H(q) over images, temperature 1, in nats"),
    (
        "D(p_T || q)",
        "mean Kullback-Leibler divergence of the student's probabilities from the teacher's at temperature T, in nats: "
        "that of the recipe's ttm or wttm, else 1",
    ),
    ("Pearson, rank", "mean over images of the correlation of the two networks' logits, and of their ranks (Spearman)"),
    ("beside them", "numbers that the loss's terms train or keep beside the student, by the last checkpoint"),
)


def _costs(one: Course) -> list[str]:
    return [
        "-" if one.top1 is None else f"{one.top1:.2f}",
        "-" if one.seconds is None else format_seconds(one.seconds),
        "-" if one.parameters is None else f"{one.parameters:,}",
        "-" if one.additional is None else f"{one.additional:,}",
    ]


def _last(one: Course, key: str) -> str:
    return f"{one.curves[key][1][-1]:.4f}" if key in one.curves else "-"


def _result(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _additional(folder: Path) -> int | None:
    try:
        saved = load_checkpoint(folder / LAST)
    except UserError:
        return None
    if saved is None:
        return None
    return sum(math.prod(value.shape) for name, value in saved["distiller"].items() if name.startswith("terms."))
