"""Pieces of text and bars side by side, no wider than the terminal: the least important goes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

MIN_BAR, MAX_BAR = 6, 40


class Piece(NamedTuple):
    """A word group of a line. When room is short, the pieces with the lowest ``keep`` go first."""

    text: str
    keep: int
    style: str = ""


@dataclass
class Row:
    """One bar of the live region; ``share`` of it, 0..1, is done, None where nobody knows."""

    label: str
    unit: str
    count: str
    share: float | None
    extras: list[Piece]


class Bars:
    """The live region: one row per bar, then the losses. No wider than the console at the moment of drawing.

    Args:
        rows: the bars, from above.
        losses: the line below them; none where it is empty.
        text: makes what the console can show of a text and a style.
    """

    def __init__(self, rows: Sequence[Row], losses: Sequence[Piece], text: Callable[..., Text]):
        self._rows = rows
        self._losses = losses
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        width = options.max_width
        labels = [self._text(row.label, "bold" if i == 0 else "") for i, row in enumerate(self._rows)]
        wordy = width >= 70
        counts = [self._text(f"{row.unit} {row.count}" if wordy and row.unit else row.count) for row in self._rows]
        label_width = min(max(map(_cells, labels), default=0), max(width // 5, 5))
        count_width = max(map(_cells, counts), default=0)
        room = width - label_width - count_width - 3 - MIN_BAR
        extras = [join(fit(row.extras, max(room, 0)), self._text) for row in self._rows]
        extra_width = min(max(map(_cells, extras), default=0), max(room, 0))
        bar_width = min(width - label_width - count_width - extra_width - 3, MAX_BAR)
        lines = []
        for label, count, extra, row in zip(labels, counts, extras, self._rows, strict=True):
            line = _Line([(cut(label, label_width), label_width), (_padded_left(count, count_width), count_width)])
            if bar_width >= MIN_BAR:
                # Without a total, rich's bar pulses; ours stays empty, as nothing redraws it while nothing happens.
                bar = ProgressBar(total=1.0, completed=row.share or 0.0, width=bar_width)
                line.cells += [(bar, bar_width), (cut(extra, extra_width), extra_width)]
            lines.append(line.fit(width))
        if self._losses:
            lines.append(cut(join(fit(self._losses, width), self._text), width))
        yield Group(*lines)


class _Line:
    """Cells side by side with one space between them."""

    def __init__(self, cells: list[tuple[RenderableType, int]]):
        self.cells = cells

    def fit(self, width: int) -> RenderableType:
        while len(self.cells) > 1 and sum(w for _, w in self.cells) + len(self.cells) - 1 > width:
            self.cells.pop()
        grid = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        for _, w in self.cells:
            grid.add_column(width=max(min(w, width), 1), no_wrap=True, overflow="crop")
        grid.add_row(*(cell for cell, _ in self.cells))
        return grid


def fit(pieces: Sequence[Piece], width: int) -> list[Piece]:
    """The pieces that fit into ``width`` cells, two cells apart; the least important ones are left out."""
    kept = list(pieces)
    while len(kept) > 1 and sum(_cells(Text(p.text)) + 2 for p in kept) - 2 > width:
        lowest = min(p.keep for p in kept)
        # Of equals the last goes, so that a long list of terms is cut at its end.
        kept.pop(max(i for i, p in enumerate(kept) if p.keep == lowest))
    if len(kept) == 1 and _cells(Text(kept[0].text)) > width and kept[0].keep < 9:
        return []
    return kept


def join(pieces: Sequence[Piece], text: Callable[..., Text]) -> Text:
    """The pieces in one line, each as ``text`` (see :class:`Bars`) makes it."""
    return Text("  ").join([text(p.text, p.style) for p in pieces])


def _cells(text: Text) -> int:
    return text.cell_len


def cut(text: Text, width: int) -> Text:
    """``text`` in at most ``width`` cells."""
    text = text.copy()
    text.truncate(max(width, 0), overflow="ellipsis" if width > 1 else "crop")
    return text


def _padded_left(text: Text, width: int) -> Text:
    return Text(" " * max(width - _cells(text), 0)).append_text(text)
