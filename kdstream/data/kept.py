"""What is remembered beside shards, or in the cache folder: indices and checksums, and the bar while they are made."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn

from kdstream.data.checksums import (
    Checksum,
    Checksums,
    in_threads,
    state_of,
)
from kdstream.errors import UserError
from kdstream.terminal import visible

if TYPE_CHECKING:
    pass


def checksums_of(memory: Checksums, names: Sequence[str]) -> list[Checksum]:
    """Checksums of these shards, by reading those of which none is remembered."""
    if not all(memory.known(name) for name in names):
        with memory.alone():
            missing = [name for name in names if memory.known(name) is None]
            total = sum(state_of(memory.folder / name).size for name in missing)
            with reading_progress(total, f"checking {memory.folder.name}") as advance:
                for _ in in_threads(lambda name, stop: memory.read(name, advance, stop), missing):
                    memory.save_now_and_then()
    return [memory.known(name) or memory.read(name) for name in names]


def store(file: str, save: Callable[[Path], None], folders: Sequence[Path]) -> Path:
    """Save ``file`` in the first of ``folders`` that can be written; the later ones are created when needed.

    Raises:
        UserError: none can be written.
    """
    reasons = []
    for i, folder in enumerate(folders):
        try:
            if i > 0:
                folder.mkdir(parents=True, exist_ok=True)
            save(folder / file)
            return folder / file
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
    raise UserError(f"cannot store the index {file}: {'; '.join(reasons)}")


@contextmanager
def reading_progress(total: int, what: str, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar (on stderr) over ``total`` bytes that shows only when the work takes more than a second."""
    bar = Progress(
        *Progress.get_default_columns()[:2],
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(escape(visible(what)), total=total)
    begin, lock = time.monotonic(), threading.Lock()
    started = False

    def advance(size: int) -> None:
        nonlocal started
        bar.advance(task, size)
        if not started and time.monotonic() - begin > 1:
            with lock:
                if not started:
                    bar.start()
                    started = True

    try:
        yield advance
    finally:
        if started:
            bar.stop()
