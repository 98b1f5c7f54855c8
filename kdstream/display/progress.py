"""What a person sees while a run goes on: two live bars on a terminal, one plain line per epoch in a log file."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdstream.terminal import visible

Losses = Mapping[str, float] | Callable[[], Mapping[str, float]]

REFRESH_SECONDS = 0.2
HEARTBEAT_SECONDS = 300.0  # a log file gets a sign of life within an epoch that lasts longer than this
SMOOTHING_SECONDS = 5.0
PERMANENT_LINES = 20
MIN_BAR, MAX_BAR = 6, 40


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
        self._run: _Run | None = None
        self._tasks: list[Task] = []
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

        Numbers of a column share one format (:func:`format_column`); the best value of every column whose name
        contains ``top1`` or ``top-1`` is bold.
        """
        if not self.enabled:
            return
        table = Table(title=self._text(title), title_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = []
        for name in columns:
            values = [row.get(name) for row in rows]
            numeric = all(value is None or _is_number(value) for value in values)
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
        self._run = _Run(name=str(name), total=max(int(phases_epochs_total), 1), done=done)
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

    def task(self, description: str, total: int | None = None) -> Task:
        """Long work that is no run: evaluation, conversion of a data set. ``total`` None: length unknown.

        The bar goes away when ``total`` is reached, at :meth:`Task.close`, or at the end of a ``with`` block.
        """
        task = Task(self, str(description), total, self._clock())
        if self.enabled:
            self._tasks.append(task)
            self._show()
        return task

    def _task_moved(self, task: Task, now: float, finished: bool) -> None:
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
        return _Bars(self._run, self._tasks, self._clock(), self._text)

    def _print_wrapping(self, text: str, style: str) -> None:
        # The terminal wraps, not rich: a path stays in one piece when it is copied, and a log file has no width.
        if self.enabled:
            with self._unseen():
                self.console.print(self._text(text, style), soft_wrap=True)

    def _print_line(self, pieces: list[_Piece]) -> None:
        if not self.enabled:
            return
        with self._unseen():
            if self._live_wanted:
                width = self.console.width
                name = _cut(self._text(pieces[0].text), max(width // 4, 8))  # a long name must not oust the numbers
                line = _join(_fit([pieces[0]._replace(text=name.plain), *pieces[1:]], width), self._text)
                self.console.print(_cut(line, width), no_wrap=True)
            else:
                self.console.print(_join(pieces, self._text), soft_wrap=True)

    def _text(self, text: str, style: str = "") -> Text:
        """``text`` as the console can show it: without control characters, in its encoding."""
        encoding = self.console.encoding
        return Text(visible(text).encode(encoding, "replace").decode(encoding), style=style)


class _Console(Console):
    """One that reports a closed pipe as an error like others; rich's ends the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Task:
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

    def __enter__(self) -> Task:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pieces(self, now: float) -> list[_Piece]:
        """The task as a line of text."""
        return [_Piece(self.description, 9), _Piece(self.count, 8), *self.extras(now)]

    @property
    def count(self) -> str:
        return f"{self.completed:,}" + ("" if self.total is None else f"/{self.total:,}")

    def extras(self, now: float) -> list[_Piece]:
        """Rate and time left."""
        elapsed = now - self.started
        if not self.completed or elapsed <= 0:
            return []
        rate = self.completed / elapsed
        pieces = [_Piece(f"{format_number(rate)}/s", 3)]
        if self.total is not None and self.completed < self.total:
            pieces.append(_Piece(f"ETA {format_seconds((self.total - self.completed) / rate)}", 4))
        return pieces


class _Piece(NamedTuple):
    """A word group of a line. When room is short, the pieces with the lowest ``keep`` go first."""

    text: str
    keep: int
    style: str = ""


class _Run:
    """The numbers behind the bars of one run."""

    def __init__(self, name: str, total: int, done: int):
        self.name = name
        self.total = total
        self.done = done
        self.phase = "main"
        self.epoch = self.epochs = self.steps = self.step = self.first_step = 0
        self.values: dict[str, float] = {}
        self.val_top1: float | None = None
        self.best_top1: float | None = None
        # Sums that fade with time; their quotients are the smoothed rates.
        self.seconds = self.images = self.steps_seen = self.waits = 0.0
        self.epoch_seconds: float | None = None
        self.epoch_started = self.measured = 0.0
        self.new_images = self.new_steps = 0
        self.new_waits = 0.0

    def start_epoch(self, phase: str, epoch: int, epochs: int, steps: int, first_step: int, now: float) -> None:
        if phase != self.phase:
            self.val_top1 = self.best_top1 = None
            self.epoch_seconds = None  # the phases differ in speed
        self.phase, self.epoch, self.epochs = str(phase), epoch, epochs
        self.steps, self.step, self.first_step = steps, first_step, first_step
        self.done = max(self.total - epochs, 0) + epoch if phase == "main" else max(self.done, epoch)
        self.epoch_started = self.measured = now
        self.new_images = self.new_steps = 0
        self.new_waits = 0.0

    def measure(self, losses: Mapping[str, float], now: float) -> None:
        """Take in the steps since the last measurement."""
        self.values = dict(losses)
        seconds = now - self.measured
        if seconds <= 0 or not self.new_steps:
            return
        fade = math.exp(-seconds / SMOOTHING_SECONDS)
        self.seconds = fade * self.seconds + seconds
        self.images = fade * self.images + self.new_images
        self.steps_seen = fade * self.steps_seen + self.new_steps
        self.waits = fade * self.waits + self.new_waits
        self.measured = now
        self.new_images = self.new_steps = 0
        self.new_waits = 0.0

    def end_epoch(self, row: Mapping[str, Any], now: float) -> None:
        seconds = now - self.epoch_started
        if self.step > self.first_step and self.steps:
            seconds *= self.steps / (self.steps - self.first_step)
        old = seconds if self.epoch_seconds is None else self.epoch_seconds
        self.epoch_seconds = old + 0.3 * (seconds - old)
        self.step = self.steps
        self.done += 1
        self.values = {key: value for key, value in row.items() if key.split("/")[0] in ("loss", "train")}
        top1 = row.get("val/top1")
        if _is_number(top1):
            self.val_top1 = top1
            if math.isfinite(top1):
                self.best_top1 = top1 if self.best_top1 is None else max(self.best_top1, top1)

    def seconds_left(self, now: float) -> float | None:
        """Until the end of the run; None while nothing is known."""
        share = min(self.step / self.steps, 1.0) if self.steps else 0.0
        epochs_left = self.total - self.done - (share if self.done < self.total and self.step < self.steps else 0)
        if self.epoch_seconds is not None:
            return self.epoch_seconds * max(epochs_left, 0)
        fresh = self.step - self.first_step
        if fresh <= 0 or not self.steps:
            return None
        return (now - self.epoch_started) / fresh * self.steps * max(epochs_left, 0)

    def title(self) -> str:
        return "epoch" if self.phase == "main" else self.phase

    def top1_pieces(self) -> list[_Piece]:
        pieces = []
        if self.val_top1 is not None:
            pieces.append(_Piece(f"val {_percent(self.val_top1)}", 3, "green"))
            if self.best_top1 is not None and self.best_top1 != self.val_top1:
                pieces.append(_Piece(f"best {_percent(self.best_top1)}", 1))
        return pieces

    def eta_pieces(self, now: float) -> list[_Piece]:
        left = self.seconds_left(now)
        return [] if left is None or self.done >= self.total else [_Piece(f"ETA {format_seconds(left)}", 4, "cyan")]

    def speed_pieces(self) -> list[_Piece]:
        if not self.steps_seen:
            return []
        return _speed_pieces(self.images / self.seconds, self.waits / self.steps_seen)

    def loss_pieces(self) -> list[_Piece]:
        pieces = _loss_pieces(self.values)
        if _is_number(self.values.get("train/top1")):
            pieces.append(_Piece(f"train {_percent(self.values['train/top1'])}", 6))
        return pieces

    def progress_line(self, now: float) -> list[_Piece]:
        """Where the run stands in the middle of an epoch."""
        return [
            _Piece(self.name, 9),
            _Piece(f"{self.title()} {self.epoch + 1}/{self.epochs}", 8),
            _Piece(f"step {self.step}/{self.steps}", 7),
            *self.loss_pieces(),
            *self.speed_pieces(),
            *self.eta_pieces(now),
        ]

    def epoch_line(self, row: Mapping[str, Any], speed: Mapping[str, Any], now: float) -> list[_Piece]:
        """What an epoch brought."""
        pieces = [_Piece(self.name, 9, "bold"), _Piece(f"{self.title()} {self.epoch + 1}/{self.epochs}", 8)]
        pieces += _loss_pieces(row)
        if _is_number(row.get("train/top1")):
            pieces.append(_Piece(f"train {_percent(row['train/top1'])}", 5))
        if _is_number(row.get("val/top1")):
            best = "bold green" if row["val/top1"] == self.best_top1 else "green"
            pieces.append(_Piece(f"val {_percent(row['val/top1'])}", 8, best))
        for key in row:
            if key.count("/") == 2 and key.startswith("val/") and key.endswith("/top1") and _is_number(row[key]):
                pieces.append(_Piece(f"{key.split('/')[1]} {_percent(row[key])}", 4, "green"))
        if _is_number(row.get("val/top5")):
            pieces.append(_Piece(f"top-5 {_percent(row['val/top5'])}", 1))
        if _is_number(row.get("lr")):
            pieces.append(_Piece(f"lr {row['lr']:.3g}", 2))
        pieces += _speed_pieces(speed.get("images_per_s"), speed.get("wait_share"))
        if _is_number(speed.get("seconds")):
            pieces.append(_Piece(format_seconds(speed["seconds"]), 2))
        return pieces + self.eta_pieces(now)


class _Row(NamedTuple):
    """One bar of the live region."""

    label: str
    unit: str
    count: str
    share: float | None
    extras: list[_Piece]


class _Bars:
    """The live region: one row per bar, then the losses. No wider than the console at the moment of drawing."""

    def __init__(self, run: _Run | None, tasks: Iterable[Task], now: float, text: Callable[..., Text]):
        self._run = run
        self._text = text
        self._rows: list[_Row] = []
        if run is not None:
            shown = min(run.done + 1, run.total)
            done = run.done + (min(run.step / run.steps, 1.0) if run.steps and run.step < run.steps else 0)
            extras = run.top1_pieces() + run.eta_pieces(now)
            self._rows.append(_Row(run.name, "epoch", f"{shown}/{run.total}", done / run.total, extras))
            if run.steps:
                step = min(run.step, run.steps)
                share = step / run.steps
                self._rows.append(_Row(run.phase, "step", f"{step}/{run.steps}", share, run.speed_pieces()))
        for task in tasks:
            share = min(task.completed / task.total, 1.0) if task.total else None
            self._rows.append(_Row(task.description, "", task.count, share, task.extras(now)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        width = options.max_width
        labels = [self._text(row.label, "bold" if i == 0 else "") for i, row in enumerate(self._rows)]
        wordy = width >= 70
        counts = [self._text(f"{row.unit} {row.count}" if wordy and row.unit else row.count) for row in self._rows]
        label_width = min(max(map(_cells, labels), default=0), max(width // 5, 5))
        count_width = max(map(_cells, counts), default=0)
        room = width - label_width - count_width - 3 - MIN_BAR
        extras = [_join(_fit(row.extras, max(room, 0)), self._text) for row in self._rows]
        extra_width = min(max(map(_cells, extras), default=0), max(room, 0))
        bar_width = min(width - label_width - count_width - extra_width - 3, MAX_BAR)
        lines = []
        for label, count, extra, row in zip(labels, counts, extras, self._rows, strict=True):
            line = _Line([(_cut(label, label_width), label_width), (_padded_left(count, count_width), count_width)])
            if bar_width >= MIN_BAR:
                # Without a total, rich's bar pulses; ours stays empty, as nothing redraws it while nothing happens.
                bar = ProgressBar(total=1.0, completed=row.share or 0.0, width=bar_width)
                line.cells += [(bar, bar_width), (_cut(extra, extra_width), extra_width)]
            lines.append(line.fit(width))
        if self._run is not None and (pieces := self._run.loss_pieces()):
            lines.append(_cut(_join(_fit(pieces, width), self._text), width))
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


def _fit(pieces: Sequence[_Piece], width: int) -> list[_Piece]:
    """The pieces that fit into ``width`` cells, two cells apart; the least important ones are left out."""
    kept = list(pieces)
    while len(kept) > 1 and sum(_cells(Text(p.text)) + 2 for p in kept) - 2 > width:
        lowest = min(p.keep for p in kept)
        # Of equals the last goes, so that a long list of terms is cut at its end.
        kept.pop(max(i for i, p in enumerate(kept) if p.keep == lowest))
    if len(kept) == 1 and _cells(Text(kept[0].text)) > width and kept[0].keep < 9:
        return []
    return kept


def _join(pieces: Sequence[_Piece], text: Callable[..., Text]) -> Text:
    return Text("  ").join([text(p.text, p.style) for p in pieces])


def _cells(text: Text) -> int:
    return text.cell_len


def _cut(text: Text, width: int) -> Text:
    text = text.copy()
    text.truncate(max(width, 0), overflow="ellipsis" if width > 1 else "crop")
    return text


def _padded_left(text: Text, width: int) -> Text:
    return Text(" " * max(width - _cells(text), 0)).append_text(text)


def _loss_pieces(values: Mapping[str, Any]) -> list[_Piece]:
    """The total, then the terms; a term alone would only repeat the total."""
    pieces = []
    total = values.get("loss")
    if _is_number(total):
        pieces.append(_Piece(f"loss {_loss(total)}", 7))
    terms = {
        name.removeprefix("loss/"): value
        for name, value in values.items()
        if name != "loss" and (name.startswith("loss/") or "/" not in name) and name not in _NOT_LOSSES
    }
    if len(terms) > 1 or not pieces:
        pieces += [_Piece(f"{name} {_loss(value)}", 6) for name, value in terms.items() if _is_number(value)]
    return pieces


_NOT_LOSSES = frozenset({"kind", "phase", "epoch", "step", "lr"})


def _speed_pieces(images_per_s: float | None, wait_share: float | None) -> list[_Piece]:
    pieces = []
    if _is_number(images_per_s):
        pieces.append(_Piece(f"{format_number(images_per_s)} img/s", 4))
    if _is_number(wait_share):
        pieces.append(_Piece(f"wait {100 * wait_share:.0f}%", 3, "yellow" if wait_share > 0.2 else ""))
    return pieces


def _loss(value: float) -> str:
    return f"{value:.3f}" if not math.isfinite(value) or value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.1e}"


def _percent(value: float) -> str:
    return f"{value:.2f}%"


# --- how numbers are written


def is_top1(name: str) -> bool:
    """Whether a column of this name holds top-1 accuracies."""
    return any(word in name.lower() for word in ("top1", "top-1", "top 1"))


def best_index(values: Sequence[Any]) -> int | None:
    """Where the largest finite number stands; None without one."""
    numbers = {i: value for i, value in enumerate(values) if _is_number(value) and math.isfinite(value)}
    return max(numbers, key=numbers.__getitem__) if numbers else None


def format_number(value: float) -> str:
    """One number for reading: 12,345 or 97.2 or 0.00312."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 or size == 0 else f"{value:.3g}"


def format_column(values: Sequence[Any], percent: bool = False) -> list[str]:
    """A table's column: its floats share a number of decimals that fits the largest (percentages: two); None is an
    en dash."""
    sizes = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v)]
    largest = max(sizes, default=0.0)
    decimals = 2 if percent else 0 if largest >= 1000 else 1 if largest > 100 else 2 if largest >= 1 else 4
    texts = []
    for value in values:
        if value is None:
            texts.append("–")
        elif isinstance(value, float):
            texts.append(f"{value:,.{decimals}f}" if math.isfinite(value) else str(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            texts.append(f"{value:,}")
        else:
            texts.append(str(value))
    return texts


def format_seconds(seconds: float) -> str:
    """A duration: 8.1 s, 42 s, 3:20, 1:02:03, 2 d 03:00."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60 % 60, whole // 3600
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
