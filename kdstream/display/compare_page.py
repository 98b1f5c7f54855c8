"""A comparison of methods: on the terminal, as one HTML file, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table as Grid
from rich.text import Text

from kdstream.display.charts import INK, PALETTE, Chart, Plotter
from kdstream.display.numbers import format_number, format_seconds
from kdstream.display.pages import pages
from kdstream.terminal import visible

if TYPE_CHECKING:
    from kdstream.analysis.spread import Difference, Spread


@dataclass(frozen=True)
class Line:
    """A method.

    Attributes:
        name: of it.
        setting: its loss, in words.
        source: where that comes from.
        tops: seed -> top-1, percent.
        top1: over seeds.
        over_labels, over_kd: differences to these; None for themselves.
        error, loss: calibration error (percent) and cross-entropy (nats) over seeds; None = unknown, as below.
        seconds, images_per_s, memory: of a training, means over seeds; memory in bytes.
    """

    name: str
    setting: str
    source: str
    tops: Mapping[int, float]
    top1: Spread
    over_labels: Difference | None = None
    over_kd: Difference | None = None
    error: Spread | None = None
    loss: Spread | None = None
    seconds: float | None = None
    images_per_s: float | None = None
    memory: float | None = None


@dataclass(frozen=True)
class ComparePage:
    """A comparison to be shown.

    Attributes:
        title, about: what was compared, on what.
        conclusions: sentences.
        lines: the methods, the best first.
        facts: how to read it: name, text.
        notes: remarks.
    """

    title: str
    about: str
    conclusions: list[str]
    lines: list[Line]
    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_Column = tuple[str, Callable[[Line], str]]
RANKING: tuple[_Column, ...] = (
    ("top-1 %", lambda line: str(line.top1)),
    ("over labels only", lambda line: _difference(line.over_labels)),
    ("over kd", lambda line: _difference(line.over_kd)),
)
COSTS: tuple[_Column, ...] = (
    ("calibration %", lambda line: "" if line.error is None else str(line.error)),
    ("loss, nats", lambda line: "" if line.loss is None else f"{line.loss.mean:.3f}"),
    ("time", lambda line: "" if line.seconds is None else format_seconds(line.seconds)),
    ("images/s", lambda line: "" if line.images_per_s is None else format_number(line.images_per_s)),
    ("memory", lambda line: "" if line.memory is None else f"{line.memory / 2**20:,.0f} MiB"),
)


def _difference(one: Difference | None) -> str:
    if one is None:
        return ""
    return f"{one.mean:+.2f}" + ("" if one.low is None else f" [{one.low:+.2f}, {one.high:+.2f}]")


def grids(page: ComparePage) -> list[Grid]:
    """The tables for a terminal of 80 columns or more: the ranking, and what it costs."""
    return [_grid(page.lines, columns) for columns in (RANKING, COSTS)]


def _grid(lines: Sequence[Line], columns: Sequence[_Column]) -> Grid:
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    grid.add_column("method", overflow="fold")
    for name, _ in columns:
        grid.add_column(name, justify="right", overflow="fold")
    for line in lines:
        grid.add_row(Text(visible(line.name)), *(Text(cell(line)) for _, cell in columns))
    return grid


def to_markdown(page: ComparePage) -> str:
    """The comparison as Markdown."""

    def text(value: str) -> str:
        return visible(value).replace("|", "\\|")

    def table(columns: Sequence[_Column]) -> list[str]:
        rows = [f"| method | {' | '.join(name for name, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
        return rows + [
            f"| {text(line.name)} | {' | '.join(cell(line) for _, cell in columns)} |" for line in page.lines
        ]

    settings: tuple[_Column, ...] = (
        ("loss", lambda line: text(line.setting)),
        ("from", lambda line: text(line.source)),
    )
    lines = [f"# {text(page.title)}", "", text(page.about), ""]
    lines += [*(f"- **{text(one)}**" for one in page.conclusions), ""]
    for columns in (RANKING, COSTS, settings):
        lines += [*table(columns), ""]
    lines += [*(f"- {text(name)}: {text(value)}" for name, value in page.facts), ""]
    lines += [f"- {text(note)}" for note in page.notes]
    return "\n".join(lines).rstrip() + "\n"


def to_html(page: ComparePage) -> str:
    """The comparison as one HTML page that loads nothing from anywhere."""
    return (
        pages()
        .get_template("compare_page.html")
        .render(page=page, ranking=RANKING, costs=COSTS, charts=_charts(page.lines), ink=INK, palette=PALETTE)
    )


def _charts(lines: Sequence[Line]) -> list[Chart]:
    draw = Plotter()
    charts = []
    if lines:
        rows = [(line.name, list(line.tops.values())) for line in lines]
        charts.append(draw.dots("Every seed", rows, "top-1, %", "and the mean"))
    for first, of in (("labels only", "over_labels"), ("kd", "over_kd")):
        differences = [(line.name, one) for line in lines if (one := getattr(line, of)) is not None]
        if differences:
            known = [(name, one.mean, one.low, one.high) for name, one in differences]
            note = "with intervals that hold together" if any(one.low is not None for _, one in differences) else ""
            charts.append(draw.intervals(f"Over {first}", known, "percentage points", note))
    points = [
        (line.name, line.seconds, line.top1.mean, line.top1.std)
        for line in lines
        if line.seconds is not None and math.isfinite(line.seconds)
    ]
    if points:
        charts.append(draw.scatter("Accuracy and cost", points, "seconds a student", "top-1, %", "mean ± deviation"))
    return charts
