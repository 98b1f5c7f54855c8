"""Pictures: what a paper's figure draws and a single number does not tell, by the finished trainings of its cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from kdstream.analysis.answers import LOGITS
from kdstream.display.charts import Chart, Line, Look, Plotter, nth_look
from kdstream.training.metrics import read_metrics
from kdstream.training.tables.comparison import Compared
from kdstream.training.tables.measures import divergence_terms
from kdstream.training.tables.passes import NotHere, Passes
from kdstream.training.tables.table import Table

Points = tuple[list[float], list[float]]


def pictures(table: Table, compared: Sequence[Compared], passes: Passes) -> list[Chart]:
    """The charts of a table whose measure is a curve or a histogram: one a column, a line a row, by the first of the
    finished seeds."""
    if table.measure not in _DRAWN:
        return []
    draw = Plotter()
    charts: list[Chart] = []
    for title, over, points in _DRAWN[table.measure]:
        for column, head in table.columns.items():
            lines: list[Line] = []
            looks: list[Look] = []
            for one in compared:
                if one.cell.column != column or not one.done:
                    continue
                try:
                    x, y = points(one, passes)
                except NotHere:
                    continue
                look = nth_look(table.rows[one.cell.row].label, len(looks))
                looks.append(look)
                lines.append(Line(x, y, look.colour, look.dash, dots=points is not _logits))
            if (chart := draw.lines(f"{title}: {head.label}", lines, log=points is _entropies, over=over)) is not None:
                charts.append(replace(chart, looks=looks))
    return charts


def _logged(key: Callable[[list[dict[str, object]]], str | None]) -> Callable[[Compared, Passes], Points]:
    """A value of every epoch of the main phase."""

    def points(one: Compared, passes: Passes) -> Points:
        rows = [row for row in read_metrics(one.done[min(one.done)].folder) if row.get("phase") == "main"]
        name = key(rows)
        known = [(float(i), float(row[name])) for i, row in enumerate(rows, 1) if name and row.get(name) is not None]
        if not known:
            raise NotHere("not in the log")
        return [x for x, _ in known], [y for _, y in known]

    return points


def _named(key: str) -> Callable[[Compared, Passes], Points]:
    return _logged(lambda rows: key)


def _entropies(one: Compared, passes: Passes) -> Points:
    """Shares of the images, in percent, by the entropy of the answer."""
    answers = passes.answers(one.cell, one.done[min(one.done)])
    counts = answers["entropy_histogram"]
    width = math.log(max(len(passes.classes(one.cell)), 2)) / len(counts)
    # Nearly all answers may be in one bin: the scale is logarithmic, and empty bins are gaps.
    shares = [100 * count / sum(counts) if count else math.nan for count in counts]
    return [(i + 0.5) * width for i in range(len(counts))], shares


def _logits(one: Compared, passes: Passes) -> Points:
    """Shares of all logits, in percent, by their place on the scale of their image's logits."""
    shares = passes.answers(one.cell, one.done[min(one.done)])["logit_histogram"]
    low, high, bins = LOGITS
    return [low + (i + 0.5) * (high - low) / bins for i in range(bins)], [100 * share for share in shares]


def _divergence(rows: list[dict[str, object]]) -> str | None:
    return next(iter(divergence_terms(rows)), None)


_DRAWN: dict[str, list[tuple[str, str, Callable[[Compared, Passes], Points]]]] = {
    "top1_curve": [
        ("Validation top-1, %", "epoch", _named("val/top1")),
        ("Training top-1, %", "epoch", _named("train/top1")),
    ],
    "divergence_curve": [("Divergence from the transformed teacher, nats", "epoch", _logged(_divergence))],
    "entropy_histogram": [("% of images", "entropy of the answer, nats", _entropies)],
    "logit_histogram": [("% of logits", "logit, standardised over the classes", _logits)],
}
"""Measure -> its charts: title, what they are over, and the points of a cell."""
