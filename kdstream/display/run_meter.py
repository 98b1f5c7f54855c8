"""What is known of a run that goes on: how far it is, how fast, how good, how long it will take, in pieces of text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kdstream.display.layout import Piece, Row
from kdstream.display.numbers import format_loss, format_number, format_percent, format_seconds, is_number

SMOOTHING_SECONDS = 5.0


class RunMeter:
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
        if is_number(top1):
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

    def rows(self, now: float) -> list[Row]:
        """The bars: of the run, and of its epoch."""
        at_work = min(self.step / self.steps, 1.0) if self.steps and self.step < self.steps else 0
        shown, share = min(self.done + 1, self.total), (self.done + at_work) / self.total
        extras = self.top1_pieces() + self.eta_pieces(now)
        rows = [Row(self.name, "epoch", f"{shown}/{self.total}", share, extras)]
        if self.steps:
            step = min(self.step, self.steps)
            rows.append(Row(self.phase, "step", f"{step}/{self.steps}", step / self.steps, self.speed_pieces()))
        return rows

    def title(self) -> str:
        return "epoch" if self.phase == "main" else self.phase

    def top1_pieces(self) -> list[Piece]:
        pieces = []
        if self.val_top1 is not None:
            pieces.append(Piece(f"val {format_percent(self.val_top1)}", 3, "green"))
            if self.best_top1 is not None and self.best_top1 != self.val_top1:
                pieces.append(Piece(f"best {format_percent(self.best_top1)}", 1))
        return pieces

    def eta_pieces(self, now: float) -> list[Piece]:
        left = self.seconds_left(now)
        return [] if left is None or self.done >= self.total else [Piece(f"ETA {format_seconds(left)}", 4, "cyan")]

    def speed_pieces(self) -> list[Piece]:
        if not self.steps_seen:
            return []
        return _speed_pieces(self.images / self.seconds, self.waits / self.steps_seen)

    def loss_pieces(self) -> list[Piece]:
        pieces = _loss_pieces(self.values)
        if is_number(self.values.get("train/top1")):
            pieces.append(Piece(f"train {format_percent(self.values['train/top1'])}", 6))
        return pieces

    def progress_line(self, now: float) -> list[Piece]:
        """Where the run stands in the middle of an epoch."""
        return [
            Piece(self.name, 9),
            Piece(f"{self.title()} {self.epoch + 1}/{self.epochs}", 8),
            Piece(f"step {self.step}/{self.steps}", 7),
            *self.loss_pieces(),
            *self.speed_pieces(),
            *self.eta_pieces(now),
        ]

    def epoch_line(self, row: Mapping[str, Any], speed: Mapping[str, Any], now: float) -> list[Piece]:
        """What an epoch brought."""
        pieces = [Piece(self.name, 9, "bold"), Piece(f"{self.title()} {self.epoch + 1}/{self.epochs}", 8)]
        pieces += _loss_pieces(row)
        if is_number(row.get("train/top1")):
            pieces.append(Piece(f"train {format_percent(row['train/top1'])}", 5))
        if is_number(row.get("val/top1")):
            best = "bold green" if row["val/top1"] == self.best_top1 else "green"
            pieces.append(Piece(f"val {format_percent(row['val/top1'])}", 8, best))
        for key in row:
            if key.count("/") == 2 and key.startswith("val/") and key.endswith("/top1") and is_number(row[key]):
                pieces.append(Piece(f"{key.split('/')[1]} {format_percent(row[key])}", 4, "green"))
        if is_number(row.get("val/top5")):
            pieces.append(Piece(f"top-5 {format_percent(row['val/top5'])}", 1))
        if is_number(row.get("lr")):
            pieces.append(Piece(f"lr {row['lr']:.3g}", 2))
        pieces += _speed_pieces(speed.get("images_per_s"), speed.get("wait_share"))
        if is_number(speed.get("seconds")):
            pieces.append(Piece(format_seconds(speed["seconds"]), 2))
        return pieces + self.eta_pieces(now)


def _loss_pieces(values: Mapping[str, Any]) -> list[Piece]:
    """The total, then the terms; a term alone would only repeat the total."""
    pieces = []
    total = values.get("loss")
    if is_number(total):
        pieces.append(Piece(f"loss {format_loss(total)}", 7))
    terms = {
        name.removeprefix("loss/"): value
        for name, value in values.items()
        if name != "loss" and (name.startswith("loss/") or "/" not in name) and name not in _NOT_LOSSES
    }
    if len(terms) > 1 or not pieces:
        pieces += [Piece(f"{name} {format_loss(value)}", 6) for name, value in terms.items() if is_number(value)]
    return pieces


_NOT_LOSSES = frozenset({"kind", "phase", "epoch", "step", "lr"})


def _speed_pieces(images_per_s: float | None, wait_share: float | None) -> list[Piece]:
    pieces = []
    if is_number(images_per_s):
        pieces.append(Piece(f"{format_number(images_per_s)} img/s", 4))
    if is_number(wait_share):
        pieces.append(Piece(f"wait {100 * wait_share:.0f}%", 3, "yellow" if wait_share > 0.2 else ""))
    return pieces
