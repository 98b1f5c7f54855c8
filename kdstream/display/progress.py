"""What a person sees while a run goes on: two live bars on a terminal, one plain line per epoch in a log file."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kdstream.display.layout import Bars, Piece, Row, cut, fit, join
from kdstream.display.numbers import best_index, format_column, format_number, format_seconds, is_number, is_top1
from kdstream.display.run_meter import RunMeter
from kdstream.terminal import visible

Losses = Mapping[str, float] | Callable[[], Mapping[str, float]]

REFRESH_SECONDS = 0.2
HEARTBEAT_SECONDS = 300.0  # a log file gets a sign of life within an epoch that lasts longer than this
PERMANENT_LINES = 20


class Display:
    """Shows runs, their epochs and steps, and other long work.

    On a terminal: live bars (run, epoch, other tasks) and a line of losses, which never grow wider than the terminal,
    and at most about twenty lasting lines per run above them. Elsewhere: plain text, one line per epoch.
    Text that comes from the caller is shown as it is: no markup, no control characters. Where nothing can be written
    any more (the terminal was closed, the disk of the log file is full), the work goes on unseen.

    Args:
        console: where to write; None is standard output.
        enabled: False prints nothing at all (every process but the first).
        clock: seconds, monotonic.
    """

    def __init__(
        self, console: Console | None = None, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ):
        self.console = console if console is not None else _Console()
        self.enabled = enabled
        self._live_wanted = enabled and self.console.is_terminal and not self.console.is_dumb_terminal
        self._clock = clock
        self._live: Live | None = None
        self._run: RunMeter | None = None
        self._tasks: list[LongTask] = []
        self._said: set[str] = set()
        self._due = math.inf

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run = None
        self._tasks.clear()
        self._show()

    # --- lasting lines

    def headline(self, text: str) -> None:
        """A heading: what begins now."""
        self._print_wrapping(text, "bold")

    def note(self, text: str, once: bool = False) -> None:
        """A line of information; with ``once`` only the first time."""
        if not (once and text in self._said):
            self._said.add(text)
            self._print_wrapping(text, "dim")

    def error(self, line: str) -> None:
        """What went wrong, in one line."""
        self._print_wrapping(f"error: {line}", "bold red")

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A small table. Its columns are the keys of all rows, in the order of their first appearance.

        Numbers of a column share one format (:func:`~kdstream.display.numbers.format_column`); the best value of every
        column whose name contains ``top1`` or ``top-1`` is bold.
        """
        if not self.enabled:
            return
        table = Table(title=self._text(title), title_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = []
        for name in columns:
            values = [row.get(name) for row in rows]
            numeric = all(value is None or is_number(value) for value in values)
            table.add_column(self._text(name), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
            best = best_index(values) if is_top1(name) else None
            texts = format_column(values, percent="%" in name)
            cells.append([self._text(text, "bold" if i == best else "") for i, text in enumerate(texts)])
        for row in zip(*cells, strict=True):
            table.add_row(*row)
        console = self.console
        if not console.is_terminal:  # a file has no width: the table is as wide as it needs to be
            needed = Measurement.get(console, console.options.update(width=10_000), table).maximum
            console = _Console(file=console.file, width=max(needed, console.width))
        with self._unseen():
            console.print(table)

    # --- a run

    def start_run(self, name: str, phases_epochs_total: int, done: int = 0) -> None:
        """A run of so many epochs begins, all of its phases together; ``done`` of them lie behind (after a resume)."""
        if not self.enabled:
            return
        self._run = RunMeter(name=str(name), total=max(int(phases_epochs_total), 1), done=done)
        self._show()

    def start_epoch(self, name: str, phase: str, epoch: int, epochs: int, steps: int, first_step: int = 0) -> None:
        """An epoch begins.

        Args:
            name: of the run.
            phase: of the run; ``main`` is the last.
            epoch: counted from 0 within the phase.
            epochs: length of the phase.
            steps: length of the epoch.
            first_step: steps of this epoch that lie behind (after a resume).
        """
        if not self.enabled:
            return
        if self._run is None or self._run.name != str(name):
            self.start_run(name, epochs)
        run = self._run
        if run is None:
            return
        run.start_epoch(phase, epoch, epochs, steps, first_step, self._clock())
        self._due = self._clock() + (REFRESH_SECONDS if self._live_wanted else HEARTBEAT_SECONDS)
        self._show()

    def step(self, step: int, losses: Losses, images: int, wait_share: float) -> None:
        """A step is done. Cheap: most calls do no more than count.

        Args:
            step: counted from 0 within the epoch.
            losses: name -> value: ``loss`` is the total, ``loss/<term>`` or ``<term>`` a term, ``train/top1`` the
                training accuracy in percent. A function is called only when the display is about to change, which
                spares the accelerator the wait.
            images: seen in this step, by all processes.
            wait_share: share of the step's time spent waiting for data, 0..1.
        """
        run = self._run
        if run is None:
            return
        run.step = step + 1
        run.new_images += images
        run.new_waits += wait_share
        run.new_steps += 1
        now = self._clock()
        if now < self._due:
            return
        run.measure(losses() if callable(losses) else losses, now)
        if self._live_wanted:
            self._due = now + REFRESH_SECONDS
            self._show()
        else:
            self._due = now + HEARTBEAT_SECONDS
            self._print_line(run.progress_line(now))

    def end_epoch(self, row: Mapping[str, Any], speed: Mapping[str, Any]) -> None:
        """An epoch is done and evaluated.

        Args:
            row: ``loss``, ``loss/<term>``, ``lr``, ``train/top1``, ``val/top1``, ``val/top5`` (percent), and
                ``val/<network>/top1`` of those that learn beside the student, as far as they were measured.
            speed: ``images_per_s``, ``wait_share`` (0..1), ``seconds``, as far as they were measured.
        """
        run = self._run
        if run is None:
            return
        now = self._clock()
        run.end_epoch(row, now)
        last = run.done >= run.total
        every = math.ceil(run.total / PERMANENT_LINES)
        if not self._live_wanted or last or run.done % every == 0:
            self._print_line(run.epoch_line(row, speed, now))
        if last:
            self._run = None
        self._show()

    # --- other long work

    def task(self, description: str, total: int | None = None) -> LongTask:
        """Long work that is no run: evaluation, conversion of a data set. ``total`` None: length unknown.

        The bar goes away when ``total`` is reached, at :meth:`LongTask.close`, or at the end of a ``with`` block.
        """
        task = LongTask(self, str(description), total, self._clock())
        if self.enabled:
            self._tasks.append(task)
            self._show()
        return task

    def _task_moved(self, task: LongTask, now: float, finished: bool) -> None:
        if finished:
            self._tasks.remove(task)
        if self._live_wanted:
            self._show()
        elif not finished or now - task.started > HEARTBEAT_SECONDS:
            self._print_line(task.pieces(now))

    # --- output

    def _show(self) -> None:
        """Bring the live region up to date: start it, refresh it, or take it away when nothing goes on."""
        if not self._live_wanted:
            return
        busy = self._run is not None or bool(self._tasks)
        with self._unseen():
            if self._live is None and busy:
                # No thread of its own: it would compete with the training loop and make forks of readers unsafe.
                self._live = Live(console=self.console, auto_refresh=False, transient=True, get_renderable=self._bars)
                self._live.start()
            if self._live is not None and busy:
                self._live.refresh()
            elif self._live is not None:
                self._live.stop()
                self._live = None

    @contextlib.contextmanager
    def _unseen(self) -> Iterator[None]:
        """Nothing more is shown after an error of the terminal, or of the file that takes its place."""
        try:
            yield
        except OSError:
            self.enabled = self._live_wanted = False
            live, self._live, self._run = self._live, None, None
            if live is not None:
                with contextlib.suppress(OSError):
                    live.stop()

    def _bars(self) -> RenderableType:
        now, run = self._clock(), self._run
        rows = [*(run.rows(now) if run else ()), *(task.row(now) for task in self._tasks)]
        return Bars(rows, run.loss_pieces() if run else (), self._text)

    def _print_wrapping(self, text: str, style: str) -> None:
        # The terminal wraps, not rich: a path stays in one piece when it is copied, and a log file has no width.
        if self.enabled:
            with self._unseen():
                self.console.print(self._text(text, style), soft_wrap=True)

    def _print_line(self, pieces: list[Piece]) -> None:
        if not self.enabled:
            return
        with self._unseen():
            if self._live_wanted:
                width = self.console.width
                name = cut(self._text(pieces[0].text), max(width // 4, 8))  # a long name must not oust the numbers
                line = join(fit([pieces[0]._replace(text=name.plain), *pieces[1:]], width), self._text)
                self.console.print(cut(line, width), no_wrap=True)
            else:
                self.console.print(join(pieces, self._text), soft_wrap=True)

    def _text(self, text: str, style: str = "") -> Text:
        """``text`` as the console can show it: without control characters, in its encoding."""
        encoding = self.console.encoding
        return Text(visible(text).encode(encoding, "replace").decode(encoding), style=style)


class _Console(Console):
    """One that reports a closed pipe as an error like others; rich's ends the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class LongTask:
    """The progress of one piece of long work; made by :meth:`Display.task`."""

    def __init__(self, display: Display, description: str, total: int | None, now: float):
        self.description = description
        self.total = total
        self.completed = 0
        self.started = now
        self._display = display
        self._open = display.enabled
        self._interval = REFRESH_SECONDS if display._live_wanted else HEARTBEAT_SECONDS
        self._due = now + self._interval

    def advance(self, n: int = 1) -> None:
        """``n`` more units are done."""
        self.completed += n
        if not self._open:
            return
        if self.total is not None and self.completed >= self.total:
            self.close()
            return
        now = self._display._clock()
        if now >= self._due:
            self._due = now + self._interval
            self._display._task_moved(self, now, finished=False)

    def close(self) -> None:
        """The work is over, complete or not."""
        if self._open:
            self._open = False
            self._display._task_moved(self, self._display._clock(), finished=True)

    def __enter__(self) -> LongTask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pieces(self, now: float) -> list[Piece]:
        """The task as a line of text."""
        return [Piece(self.description, 9), Piece(self.count, 8), *self.extras(now)]

    def row(self, now: float) -> Row:
        """The task as a bar."""
        share = min(self.completed / self.total, 1.0) if self.total else None
        return Row(self.description, "", self.count, share, self.extras(now))

    @property
    def count(self) -> str:
        return f"{self.completed:,}" + ("" if self.total is None else f"/{self.total:,}")

    def extras(self, now: float) -> list[Piece]:
        """Rate and time left."""
        elapsed = now - self.started
        if not self.completed or elapsed <= 0:
            return []
        rate = self.completed / elapsed
        pieces = [Piece(f"{format_number(rate)}/s", 3)]
        if self.total is not None and self.completed < self.total:
            pieces.append(Piece(f"ETA {format_seconds((self.total - self.completed) / rate)}", 4))
        return pieces
