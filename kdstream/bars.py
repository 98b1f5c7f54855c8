"""The progress bar of a conversion: images done, images a second, time left, for each split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from kdstream.terminal import visible


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} images/s" if speed else "- images/s", style="progress.data.speed")


@contextmanager
def conversion_progress(
    console: Console, totals: Mapping[str, int], present: Sequence[int]
) -> Iterator[tuple[Callable[[], None], Callable[[Sequence[int]], None]]]:
    """Gives (start, update): show the bars; set the images done of each split, beyond those that were ``present``."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    bars = [
        progress.add_task(visible(name), total=total, completed=done, start=False)
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
