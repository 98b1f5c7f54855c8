"""The record of a run, in its folder: metrics equal between equal runs, speed beside them, and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from kdstream.atomic import reason, writing
from kdstream.errors import DiskError, UserError

METRICS_FILE = "metrics.jsonl"
SPEED_FILE = "speed.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsLog:
    """Appends the rows of a run to ``metrics.jsonl`` and ``speed.jsonl`` and shows both in TensorBoard.

    What is deterministic goes to ``metrics.jsonl``, what the clock decides goes to ``speed.jsonl``; so the former can
    be compared byte for byte between runs. A row outlives the process as soon as ``write`` has returned; one that the
    disk has no room for is not there at all.

    Args:
        folder: the run's folder; made when missing.
        position: None starts a fresh record and empties what an earlier run left in the folder. The value of
            :attr:`position` that a checkpoint holds continues that record: rows written after it are cut off.
        tensorboard: also write event files to ``folder/tensorboard``.

    Raises:
        UserError: ``position`` does not fit the files in the folder, or TensorBoard is wanted but not installed.
        DiskError: here and in all methods: the disk is full or fails.
    """

    def __init__(
        self, folder: str | os.PathLike[str], position: Mapping[str, int] | None = None, tensorboard: bool = True
    ):
        self.folder = Path(folder)
        self._files: list[_Rows] = []
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            sizes = {name: _checked_size(self.folder / name, position) for name in (METRICS_FILE, SPEED_FILE)}
        self._step = -1 if position is None else int(position.get("step", -1))
        with contextlib.ExitStack() as undo:
            undo.callback(self._drop)
            for name, size in sizes.items():
                self._files.append(_Rows(self.folder / name, size))
            self._metrics, self._speed = self._files
            self._board = self._open_board(fresh=position is None) if tensorboard else None
            if self._board is not None:
                self._files.append(self._board.file)
            undo.pop_all()

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
        for file in self._files:
            file.sync()
        return {METRICS_FILE: self._metrics.size, SPEED_FILE: self._speed.size, "step": self._step}

    def close(self) -> None:
        """Close the files. May be called more than once."""
        for file in self._files:
            file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._drop()

    def _drop(self) -> None:
        """Close what is open where something else has already gone wrong."""
        for file in self._files:
            with contextlib.suppress(DiskError):
                file.close()

    def _append(self, file: _Rows, row: dict[str, Any], tags: Mapping[str, str]) -> None:
        file.append(json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        if isinstance(row.get("step"), int):
            self._step = row["step"]
        if self._board is None:
            return
        for name, value in row.items():
            if name not in ("epoch", "step") and isinstance(value, int | float) and not isinstance(value, bool):
                self._board.add(tags[name], value, max(self._step, 0))

    def _open_board(self, fresh: bool) -> _Board:
        folder = self.folder / TENSORBOARD_FOLDER
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("events.out.tfevents.*") if fresh else ():
                old.unlink()
        # What a killed run wrote after its last checkpoint is hidden.
        return _Board(folder, None if fresh else self._step + 1)


class _Rows:
    """A file that grows by whole rows; unbuffered, so a killed process loses none.

    Args:
        path: made where it does not exist.
        size: bytes that are kept of it.

    Raises:
        DiskError: here and in all methods: the disk is full or fails.
    """

    def __init__(self, path: Path, size: int):
        self.path, self.size = path, size
        with writing(path):
            self._file = path.open("ab", buffering=0)
            try:
                self._file.truncate(size)
            except OSError:
                self._file.close()
                raise
        self._torn = False

    def append(self, row: bytes) -> None:
        """Write all of ``row``, or, where that fails or is interrupted, nothing of it."""
        with writing(self.path):
            try:
                if self._torn:
                    self._cut()
                self._torn = True
                left = memoryview(row)
                while left:  # a disk that becomes full takes a part of it, without an error before the next attempt
                    left = left[self._file.write(left) :]
                self._torn = False
                self.size += len(row)
            except BaseException:
                with contextlib.suppress(OSError):  # before the next row, then, or when the run continues
                    self._cut()
                raise

    def sync(self) -> None:
        """All rows reach the disk."""
        with writing(self.path):
            if self._torn:
                self._cut()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """May be called more than once."""
        with writing(self.path):
            self._file.close()

    def _cut(self) -> None:
        self._file.truncate(self.size)
        self._torn = False


class _Board:
    """Curves for TensorBoard, in an event file of its own.

    Written here and now by TensorBoard's own record writer: its event writer leaves it to a thread, whose errors come
    late, with a traceback, or not at all.

    Args:
        folder: of the event files.
        purge_step: what the folder's files tell of this step and later ones is hidden. None: there are none.

    Raises:
        UserError: TensorBoard is not installed.
        DiskError: the disk is full or fails.
    """

    def __init__(self, folder: Path, purge_step: int | None):
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise UserError(
                f"TensorBoard cannot be imported ({error}): pip install tensorboard, or switch it off in the recipe"
            ) from error
        self._event, self._summary = Event, Summary
        # Files are read in the order of their names: a later one must have a later time, even if the clock went back.
        with writing(folder):
            times = [int(found[1]) for path in folder.iterdir() if (found := re.search(r"tfevents\.(\d+)", path.name))]
        stamp = max([int(time.time()), *(earlier + 1 for earlier in times)])
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self.file = _Rows(folder / name, 0)
        self._records = RecordWriter(_WholeRecords(self.file))
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, tag: str, value: float, step: int) -> None:
        """One point of a curve."""
        self._write(step=step, summary=self._summary(value=[self._summary.Value(tag=tag, simple_value=value)]))

    def _write(self, **event: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())


class _WholeRecords:
    """What TensorBoard's record writer, which writes each record in one piece, takes for a file."""

    def __init__(self, rows: _Rows):
        self.write = rows.append


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
    try:
        *lines, tail = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
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
