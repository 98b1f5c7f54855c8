"""The record of a run, in its folder: metrics equal between equal runs, speed beside them, and TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from kdstream.errors import UserError

METRICS_FILE = "metrics.jsonl"
SPEED_FILE = "speed.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsLog:
    """Appends the rows of a run to ``metrics.jsonl`` and ``speed.jsonl`` and shows both in TensorBoard.

    What is deterministic goes to ``metrics.jsonl``, what the clock decides goes to ``speed.jsonl``; so the former can
    be compared byte for byte between runs. A row outlives the process as soon as ``write`` has returned.

    Args:
        folder: the run's folder; made when missing.
        position: None starts a fresh record and empties what an earlier run left in the folder. The value of
            :attr:`position` that a checkpoint holds continues that record: rows written after it are cut off.
        tensorboard: also write event files to ``folder/tensorboard``.

    Raises:
        UserError: ``position`` does not fit the files in the folder, or TensorBoard is wanted but not installed.
    """

    def __init__(
        self, folder: str | os.PathLike[str], position: Mapping[str, int] | None = None, tensorboard: bool = True
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        sizes = {name: _checked_size(self.folder / name, position) for name in (METRICS_FILE, SPEED_FILE)}
        self._step = -1 if position is None else int(position.get("step", -1))
        self._board = self._open_board(fresh=position is None) if tensorboard else None
        self._metrics, self._speed = (_open_at(self.folder / name, size) for name, size in sizes.items())

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        """Append one row of deterministic numbers.

        Args:
            kind: what the row describes ("epoch"); stands first in the line, under ``kind``.
            row: name -> number, text or None, in the order in which they are to stand. ``step`` (int, optimizer steps
                since the start of the run) is the x of TensorBoard's curves. Scalars of NumPy and torch are welcome;
                a float that is not finite is written as null.
        """
        row = {"kind": kind, **{name: _plain(value) for name, value in row.items()}}
        self._append(self._metrics, row, _metric_tags(row))

    def write_speed(self, row: Mapping[str, Any]) -> None:
        """Append one row of what the clock decides: ``images_per_s``, ``wait_share``, ``seconds``, ..."""
        row = {name: _plain(value) for name, value in row.items()}
        self._append(self._speed, row, {name: f"speed/{name}" for name in row})

    @property
    def position(self) -> dict[str, int]:
        """Where the record stands, for a checkpoint: the files' lengths in bytes and the last step.

        Everything up to there has reached the disk when this returns.
        """
        files = {METRICS_FILE: self._metrics, SPEED_FILE: self._speed}
        for file in files.values():
            os.fsync(file.fileno())
        if self._board is not None:
            self._board.flush()
        return {**{name: os.fstat(file.fileno()).st_size for name, file in files.items()}, "step": self._step}

    def close(self) -> None:
        """Close the files. May be called more than once."""
        self._metrics.close()
        self._speed.close()
        if self._board is not None:
            self._board.close()
            self._board = None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, file: Any, row: dict[str, Any], tags: Mapping[str, str]) -> None:
        file.write(json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        if isinstance(row.get("step"), int):
            self._step = row["step"]
        if self._board is None:
            return
        for name, value in row.items():
            if name not in ("epoch", "step") and isinstance(value, int | float) and not isinstance(value, bool):
                self._board.add_scalar(tags[name], value, max(self._step, 0))

    def _open_board(self, fresh: bool) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"TensorBoard cannot be imported ({error}): pip install tensorboard, or switch it off in the recipe"
            ) from error
        folder = self.folder / TENSORBOARD_FOLDER
        if fresh:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        # purge_step hides what a killed run wrote after its last checkpoint.
        return SummaryWriter(str(folder), purge_step=None if fresh else self._step + 1)


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of ``folder/metrics.jsonl``, oldest first; null stands as None.

    A last line that was cut short (the run was killed while it wrote, or writes just now) is left out. No file: no
    rows.

    Raises:
        UserError: a line other than the last is not a JSON object.
    """
    return _read(Path(folder) / METRICS_FILE)


def read_speed(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of ``folder/speed.jsonl``; as :func:`read_metrics`."""
    return _read(Path(folder) / SPEED_FILE)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    *lines, tail = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate([*lines, tail], start=1):
        try:
            row = json.loads(line)
        except ValueError:  # of JSON and of UTF-8
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number <= len(lines):
            raise UserError(f"{path}, line {number}: not a JSON object; the file was damaged, restore or remove it")
    return rows


def _plain(value: Any) -> Any:
    """``value`` as JSON knows it: Python's own scalars, None for floats that are not finite."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _metric_tags(row: Mapping[str, Any]) -> dict[str, str]:
    """TensorBoard's tag of each name: as it is, the total beside its terms, phases before the main one in groups."""
    phase = row.get("phase", "main")
    group = "" if phase == "main" else f"{phase}/"
    return {name: group + ("loss/total" if name == "loss" else name) for name in row}


def _checked_size(path: Path, position: Mapping[str, int] | None) -> int:
    """The length to which ``path`` is to be cut, after a look at whether it can be."""
    if position is None:
        return 0
    size = position.get(path.name)
    if not isinstance(size, int) or size < 0:
        raise UserError(f"the checkpoint does not say where {path} stood: it was not written by this version")
    found = path.stat().st_size if path.exists() else 0
    torn = False
    if 0 < size <= found:
        with path.open("rb") as file:
            file.seek(size - 1)
            torn = file.read(1) != b"\n"
    if found < size or torn:
        raise UserError(
            f"{path} is not the file that the checkpoint continues (it held {size} bytes, now {found}): put it back, "
            "or remove the run's folder to start anew"
        )
    return size


def _open_at(path: Path, size: int) -> Any:
    """``path``, cut to ``size`` bytes and open for appending; unbuffered, so a killed process loses no row."""
    file = path.open("ab", buffering=0)
    file.truncate(size)
    return file
