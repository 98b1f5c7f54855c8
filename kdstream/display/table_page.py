"""A paper's table with ours beside it: on the terminal, as one HTML file, as Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.table import Table as Grid
from rich.text import Text

from kdstream.display.charts import INK, PALETTE, Chart
from kdstream.display.pages import pages
from kdstream.terminal import visible

MARK = "*"
"""Where a difference is more than the spread explains."""


@dataclass(frozen=True)
class Shown:
    """A cell, in words.

    Attributes:
        printed: the paper's value; empty where none is printed.
        last, best: ours after the last and the best epoch, mean and deviation; empty where there is none. What is no
            value of an epoch stands in ``last`` alone.
        seeds: of how many.
        difference: ours less printed; empty where one of them is missing.
        marked: the difference is more than the spread explains.
        missing: what is lacking, and what it would cost; empty where nothing is.
        doubts: what is hardly right about the printed value.
    """

    printed: str = ""
    last: str = ""
    best: str = ""
    seeds: int = 0
    difference: str = ""
    marked: bool = False
    missing: str = ""
    doubts: tuple[str, ...] = ()

    @property
    def ours(self) -> list[str]:
        """Lines for people: both means, the difference with its mark, and of how many seeds they are."""
        if not self.seeds:
            return []
        over = self.difference + (MARK if self.marked else "")
        values = [f"last {self.last}", f"best {self.best}"] if self.best else [f"ours {self.last}"]
        return [*values, ", ".join(filter(None, [over, f"n = {self.seeds}"]))]


@dataclass(frozen=True)
class TablePage:
    """A table to be shown.

    Attributes:
        title, place: what it is and where it stands.
        columns: their names.
        rows: (name, its cells) each.
        facts: how to read it: name, text.
        notes: remarks, and what is doubtful.
        charts: curves and histograms, on the HTML page alone.
    """

    title: str
    place: str
    columns: list[str]
    rows: list[tuple[str, list[Shown]]]
    facts: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)


def grids(page: TablePage, width: int) -> list[Grid]:
    """The table for a terminal of that width: as many columns side by side as have room."""
    cells = [[_lines(shown) for shown in line] for _, line in page.rows]
    names = max(len(name) for name, _ in page.rows)
    widths = [
        max(map(len, [column, *(text for line in cells for text in line[i])])) for i, column in enumerate(page.columns)
    ]
    found: list[Grid] = []
    start = 0
    while start < len(page.columns):
        end, used = start, names + 3
        while end < len(page.columns) and (end == start or used + widths[end] + 2 <= width):
            used, end = used + widths[end] + 2, end + 1
        grid = Grid(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, show_lines=True)
        grid.add_column("", overflow="fold")
        for column in page.columns[start:end]:
            grid.add_column(Text(visible(column)), justify="right", overflow="fold")
        for (name, _), line in zip(page.rows, cells, strict=True):
            grid.add_row(Text(visible(name)), *(Text(visible("\n".join(one), keep="\n")) for one in line[start:end]))
        found.append(grid)
        start = end
    return found


def _lines(shown: Shown) -> list[str]:
    first = shown.printed or ("." if shown.seeds or shown.missing else "")
    return [first, *shown.ours, *filter(None, [shown.missing])]


def to_markdown(page: TablePage) -> str:
    """The table as Markdown."""

    def text(value: str) -> str:
        return visible(value).replace("|", "\\|")

    lines = [f"# {text(page.title)}", "", text(page.place), ""]
    lines += ["| " + " | ".join(["", *map(text, page.columns)]) + " |", "|---" * (len(page.columns) + 1) + "|"]
    for name, line in page.rows:
        cells = ["<br>".join(map(text, filter(None, _lines(shown)))) for shown in line]
        lines.append("| " + " | ".join([text(name), *cells]) + " |")
    lines += ["", *(f"- {text(name)}: {text(value)}" for name, value in page.facts)]
    lines += ["", *(f"- {text(note)}" for note in page.notes)]
    return "\n".join(lines).rstrip() + "\n"


def to_html(page: TablePage) -> str:
    """The table as one HTML page that loads nothing from anywhere."""
    return pages().get_template("table_page.html").render(page=page, colours={"ink": INK, "palette": PALETTE})
