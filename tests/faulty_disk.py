"""A disk that fails at a chosen moment, for tests: everything that this process writes below a folder passes here."""

from __future__ import annotations

import builtins
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest


class FaultyDisk:
    """Counts what is done to the disk below ``folder``, and lets one act fail.

    Acts: opening for writing, each write, truncating, syncing, renaming, making folders, removing.

    Args:
        folder: other places work as ever.
        fail_at: the number of the act that fails, from 1; 0: none.
        number: the errno.
        lasting: all later acts that need room fail too, as on a full disk; else the disk is well again at once.
    """

    def __init__(self, folder: Path, fail_at: int = 0, number: int = errno.ENOSPC, lasting: bool = False):
        self.folder, self.fail_at, self.number, self.lasting = os.path.abspath(folder), fail_at, number, lasting
        self.acts: list[str] = []

    def act(self, what: str, path: Any, frees: bool = False) -> None:
        """Fails where it is time."""
        self.acts.append(f"{what} {os.path.relpath(os.fsdecode(path), self.folder)}")
        count = len(self.acts)
        if self.fail_at and (count == self.fail_at or (self.lasting and count > self.fail_at and not frees)):
            raise OSError(self.number, os.strerror(self.number), os.fspath(path))

    def holds(self, path: Any) -> bool:
        """Whether a path is below the folder."""
        return not isinstance(path, int) and os.path.abspath(os.fsdecode(path)).startswith(self.folder)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Until ``patch`` is undone."""
        plain_open, names = io.open, dict[int, str]()

        def opened(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            if not self.holds(path) or not set(mode) & set("wxa+"):
                return plain_open(path, mode, *more, **named)
            self.act("open", path)
            return _File(self, plain_open(path, mode, *more, **named), path)

        def watched(name: str, frees: bool = False, where: int = 0) -> None:
            plain = getattr(os, name)

            def call(*paths: Any, **named: Any) -> Any:
                path = names.get(paths[where], paths[where])
                if self.holds(path):
                    self.act(name, path, frees)
                return plain(*paths, **named)

            patch.setattr(os, name, call)

        def opened_low(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if self.holds(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.act("os.open", path)
            descriptor = plain_low(path, flags, *more, **named)
            names[descriptor] = os.fsdecode(path)
            return descriptor

        def closed(descriptor: int) -> None:
            names.pop(descriptor, None)
            plain_close(descriptor)

        plain_low, plain_close = os.open, os.close
        self.names = names
        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        patch.setattr(os, "open", opened_low)
        patch.setattr(os, "close", closed)
        watched("replace", where=1)
        watched("rename", where=1)
        watched("mkdir")
        watched("fsync")
        watched("unlink", frees=True)
        watched("rmdir", frees=True)


class _File:
    """A file whose writes may fail: in the middle, as they do on a disk that becomes full."""

    def __init__(self, disk: FaultyDisk, file: Any, path: Any):
        self._disk, self._file, self._path = disk, file, path
        disk.names[file.fileno()] = os.fsdecode(path)

    def write(self, data: Any) -> int:
        try:
            self._disk.act("write", self._path)
        except OSError:
            part = len(data) // 2 if isinstance(data, str) else memoryview(data).nbytes // 2
            self._file.write(data[:part] if isinstance(data, str) else memoryview(data).cast("B")[:part])
            if isinstance(self._file, io.RawIOBase) and part:
                return part  # the system's own interface tells of a part first, and of the error at the next call
            raise
        return self._file.write(data)

    def truncate(self, size: int) -> int:
        self._disk.act("truncate", self._path, frees=True)
        return self._file.truncate(size)

    def close(self) -> None:
        if not self._file.closed:
            self._disk.names.pop(self._file.fileno(), None)
        self._file.close()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
