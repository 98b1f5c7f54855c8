"""The record of a run, in its folder: metrics equal between equal runs, and speed beside them."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from kdstream.atomic import reason, writing
from kdstream.errors import DiskError, UserError

METRICS_FILE = "metrics.jsonl"
SPEED_FILE = "speed.jsonl"


class MetricsLog:
    """Appends the rows of a run to ``metrics.jsonl`` and ``speed.jsonl``.

    What is deterministic goes to ``metrics.jsonl``, what the clock decides goes to ``speed.jsonl``; so the former can
    be compared byte for byte between runs. A row outlives the process as soon as ``write`` has returned; one that the
    disk has no room for is not there at all.

    Args:
        folder: the run's folder; made when missing.
        position: None starts a fresh record and empties what an earlier run left in the folder. The value of
            :attr:`position` that a checkpoint holds continues that record: rows written after it are cut off.

    Raises:
        UserError: ``position`` does not fit the files in the folder.
        DiskError: here and in all methods: the disk is full or fails.
    """

    def __init__(self, folder: str | os.PathLike[str], position: Mapping[str, int] | None = None):
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
            undo.pop_all()

    def write(self, kind: str, row: Mapping[str, Any]) -> None:
        """Append one row of deterministic numbers.

        Args:
            kind: what the row describes ("epoch"); stands first in the line, under ``kind``.
            row: name -> number, text or None, in the order in which they are to stand. ``step`` (int, optimizer steps
                since the start of the run) is the x of curves. Scalars of NumPy and torch are welcome;
                a float that is not finite is written as null.
        """
        row = {"kind": kind, **{name: _plain(value) for name, value in row.items()}}
        self._append(self._metrics, row)
        if isinstance(row.get("step"), int):
            self._step = row["step"]

    def write_speed(self, row: Mapping[str, Any]) -> None:
        """Append one row of what the clock decides: ``images_per_s``, ``wait_share``, ``seconds``, ..."""
        self._append(self._speed, {name: _plain(value) for name, value in row.items()})

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

    @staticmethod
    def _append(file: _Rows, row: dict[str, Any]) -> None:
        file.append(json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n")


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
