"""The progress bars of long work: what is worked on, how much is done, how fast, and how long it will take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from kdstream.terminal import visible

SHORT = 1.0
"""Seconds of reading for which no bar is worth while."""


class _Name(ProgressColumn):
    """The description as it is: no markup, nothing that acts on a terminal."""

    def render(self, task: Task) -> Text:
        return Text(visible(task.description), style="progress.description")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} images/s" if speed else "- images/s", style="progress.data.speed")


def progress_bars(console: Console, of: Literal["images", "bytes"] = "images", lasting: bool = False) -> Progress:
    """Bars for work on ``images`` or ``bytes``, not shown yet.

    Args:
        console: where; nothing is shown on one that is no terminal.
        of: what is counted.
        lasting: the bars stay when the work is over; where there is no terminal, only that is written.
    """
    measures = (DownloadColumn(), TransferSpeedColumn()) if of == "bytes" else (MofNCompleteColumn(), _Rate())
    columns = (_Name(), BarColumn(), *measures, TextColumn("left"), TimeRemainingColumn())
    seen = lasting or console.is_terminal or console.is_jupyter
    return Progress(*columns, console=console, transient=not lasting, disable=not seen)


def bar_of(progress: Progress) -> Callable[[str, int], AbstractContextManager[Callable[[int], None]]]:
    """A function (name, total) -> a context with a bar of its own among those, which gives what advances it."""

    @contextmanager
    def bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
        task = progress.add_task(name, total=total)
        try:
            yield lambda count: progress.advance(task, count)
        finally:
            progress.remove_task(task)

    return bar


@contextmanager
def conversion_progress(
    console: Console, totals: Mapping[str, int], present: Sequence[int]
) -> Iterator[tuple[Callable[[], None], Callable[[Sequence[int]], None]]]:
    """Gives (start, update): show the bars; set the images done of each split, beyond those that were ``present``."""
    progress = progress_bars(console, lasting=True)
    bars = [
        progress.add_task(name, total=total, completed=done, start=False)
        for (name, total), done in zip(totals.items(), present, strict=True)
    ]

    def update(counts: Sequence[int]) -> None:
        for bar, task, done, new in zip(bars, progress.tasks, present, counts, strict=True):
            if new and not task.started:
                progress.start_task(bar)
            progress.update(bar, completed=done + new)

    try:
        yield progress.start, update
    finally:
        progress.stop()


@contextmanager
def reading_progress(total: int, what: str, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` bytes, on standard error unless told otherwise, for work that is not over in a moment. Gives
    what advances it; several threads may."""
    progress = progress_bars(console or Console(stderr=True), "bytes")
    bar = progress.add_task(what, total=total)
    begin, lock = time.monotonic(), threading.Lock()
    started = False

    def advance(size: int) -> None:
        nonlocal started
        progress.advance(bar, size)
        if not started and time.monotonic() - begin > SHORT:
            with lock:
                if not started:
                    progress.start()
                    started = True

    try:
        yield advance
    finally:
        if started:
            progress.stop()
