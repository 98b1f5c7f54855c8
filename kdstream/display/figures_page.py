"""What an analysis found: tables on the terminal; tables and figures as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.table import Table as Grid
from rich.text import Text

from kdstream.display.charts import INK, PALETTE, Chart
from kdstream.display.pages import pages
from kdstream.terminal import visible


@dataclass(frozen=True)
class Cells:
    """A table.

    Attributes:
        heading: what stands above it.
        corner: what the names of the rows are of.
        columns: their names.
        rows: (name, a cell for each column) each.
        best: row and column of cells that are to be seen first.
    """

    heading: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    best: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class FiguresPage:
    """An analysis to be shown.

    Attributes:
        title, about: what it is, of what.
        tables: of its numbers.
        charts: its figures, on the HTML page alone.
        facts: how to read it: name, text.
        notes: remarks.
    """

    title: str
    about: str
    tables: Sequence[Cells]
    charts: Sequence[Chart] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default=())


def grids(page: FiguresPage) -> list[tuple[str, Grid]]:
    """Headings and tables for a terminal."""
    found = []
    for table in page.tables:
        grid = Grid(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        grid.add_column(Text(visible(table.corner)), overflow="fold")
        for column in table.columns:
            grid.add_column(Text(visible(column)), justify="right", overflow="fold")
        for i, (name, cells) in enumerate(table.rows):
            marked = ["bold" if (i, j) in table.best else "" for j in range(len(cells))]
            texts = [Text(visible(cell), style) for cell, style in zip(cells, marked, strict=True)]
            grid.add_row(Text(visible(name)), *texts)
        found.append((table.heading, grid))
    return found


def to_html(page: FiguresPage) -> str:
    """One HTML page that loads nothing from anywhere."""
    colours = {"ink": INK, "palette": PALETTE}
    return pages().get_template("figures_page.html").render(page=page, colours=colours)
