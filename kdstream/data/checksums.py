"""SHA-256 of shards, remembered by size and time: a file that has not changed is read once, by one process."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdstream.atomic import write_atomic
from kdstream.data.cache_folder import cache_folder
from kdstream.data.sealed_json import seal_fits, sealed
from kdstream.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

TICK, COARSE = 20_000_000, 2_000_000_000
"""Nanoseconds within which two changes may bear one time: kernels count in ticks, some file systems in seconds."""
MOST_BYTES = 1 << 28
"""Of a memory; a shard takes about 150."""
PATIENCE = 60
"""Seconds that a process waits for another one that reads the same shards and tells of no progress."""


@dataclass(frozen=True)
class FileState:
    """What tells a file from its older self without reading it: size, times (ns) and inode."""

    size: int
    mtime: int
    inode: int
    ctime: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        """The state that ``os.stat`` gives."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ino, found.st_ctime_ns)

    def same(self, other: FileState) -> bool:
        """Whether nothing says that the contents differ. The time of a file's last change of any kind (ctime) counts
        for one and the same file only: a copy may keep the other time, never this one."""
        return (self.size, self.mtime) == (other.size, other.mtime) and (
            self.inode != other.inode or self.ctime == other.ctime
        )


@dataclass(frozen=True)
class Checksum:
    """The SHA-256 (hex) of a file while it was in ``state``."""

    sha256: str
    state: FileState


class Stopped(Exception):
    """Work that was given up because other work of the same pool failed, or at Ctrl-C."""


class Checksums:
    """The checksums of a folder's shards. Those of unchanged files are remembered in ``folder/file``, or in the user's
    cache folder where that cannot be written; where neither can be, every process reads the files again.
    """

    def __init__(self, folder: Path, file: str):
        self.folder, self.file = folder, file
        self._known: dict[str, Checksum] = {}
        self._fleeting: set[str] = set()
        self._changed = False
        self._saved = time.monotonic()
        self._load()

    def known(self, name: str) -> Checksum | None:
        """The checksum of a file that has not changed since it was read; None where it has to be read.

        Raises:
            UserError: there is no such file.
        """
        state, found = state_of(self.folder / name), self._known.get(name)
        return Checksum(found.sha256, state) if found is not None and found.state.same(state) else None

    def read(
        self, name: str, advance: Callable[[int], None] = lambda size: None, stop: threading.Event | None = None
    ) -> Checksum:
        """The checksum as the file stands now, remembered or not; to be remembered from now on.

        Args:
            name: of the file.
            advance: told how many bytes more were read, now and then.
            stop: set by another thread: give up.

        Raises:
            UserError: the file is missing, cannot be read, or changes meanwhile.
            Stopped: ``stop`` was set.
        """
        path = self.folder / name
        for _ in range(3):
            before = state_of(path)
            settled = _wait_for_the_clock(before)
            digest = file_sha256(path, advance, stop)
            if state_of(path) == before:
                break
        else:
            raise UserError(f"shard {path} is being written to: try again when that has ended")
        self._take(name, Checksum(digest, before), settled)
        return self._known[name]

    def remember(self, name: str, sha256: str) -> None:
        """Take a checksum that is known to be that of the file as it stands."""
        state = state_of(self.folder / name)
        self._take(name, Checksum(sha256, state), _wait_for_the_clock(state))

    def _take(self, name: str, made: Checksum, settled: bool) -> None:
        self._known[name] = made
        (self._fleeting.discard if settled else self._fleeting.add)(name)
        self._changed = True

    def save(self, places: Sequence[Path] | None = None) -> None:
        """Write what is new, in the first place that can be written. It is only a memory: to fail is no error."""
        if not self._changed:
            return
        entries = {
            name: [known.sha256, *astuple(known.state)]
            for name, known in sorted(dict(self._known).items())
            if name not in self._fleeting
        }
        data = json.dumps(sealed({"version": 1, "files": entries})).encode()
        for place in places or self._places():
            try:
                if place.parent != self.folder:
                    place.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(place, data)
                break
            except OSError:
                continue
        self._changed, self._saved = False, time.monotonic()

    def save_now_and_then(self) -> None:
        """Write what is new if the last time is some seconds ago: who is interrupted need not begin anew, and who waits
        sees that work goes on."""
        if time.monotonic() - self._saved > 5:
            self.save()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time (of this machine) reads the files; the others wait and then know what it has found."""
        with _locked(self.folder, self._news) as waited:
            if waited:
                self._load()
            try:
                yield
            finally:
                self.save()

    def _places(self) -> tuple[Path, Path]:
        return self.folder / self.file, cached(self.folder, self.file)

    def _news(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in self._places() if path.is_file()]

    def _load(self) -> None:
        for path in reversed(self._places()):
            try:
                if path.stat().st_size > MOST_BYTES:
                    continue
                stored = json.loads(path.read_bytes())
                if not seal_fits(stored):
                    continue
                for name, (sha256, *state) in stored["files"].items():
                    found = Checksum(str(sha256), FileState(*map(int, state)))
                    known = self._known.get(name)
                    # Of two memories that one counts which fits the file.
                    if known is None or found.state.same(state_of(self.folder / name)):
                        self._known[name] = found
            except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, UserError):
                continue  # damaged or of another version: then the files are read again


def state_of(path: Path) -> FileState:
    """The state of a shard.

    Raises:
        UserError: it is missing, no regular file, or cannot be looked at.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise UserError(f"shard {path} is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read shard {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise UserError(f"cannot read shard {path}: it is no regular file")
    return FileState.of(found)


def file_sha256(
    path: Path, advance: Callable[[int], None] = lambda size: None, stop: threading.Event | None = None
) -> str:
    """Hex SHA-256 of a file's bytes; arguments as in :meth:`Checksums.read`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return descriptor_sha256(file.fileno(), advance, stop)
    except FileNotFoundError as error:
        raise UserError(f"shard {path} is missing") from error
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror or error}") from error


def descriptor_sha256(
    file: int, advance: Callable[[int], None] = lambda size: None, stop: threading.Event | None = None
) -> str:
    """The same of an open file, whose position is not moved.

    Raises:
        OSError: it cannot be read.
    """
    digest, position = hashlib.sha256(), 0
    while block := os.pread(file, 1 << 20, position):
        if stop is not None and stop.is_set():
            raise Stopped
        digest.update(block)
        position += len(block)
        advance(len(block))
    return digest.hexdigest()


def in_threads(work: Callable[[T, threading.Event], R], items: Iterable[T]) -> Iterator[R]:
    """``work(item, stop)`` for all items, a few at a time; the results in order. What goes wrong in one of them, or
    Ctrl-C, ends the others: they see ``stop`` set."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        yield from pool.map(lambda item: work(item, stop), items)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def cached(folder: Path, file: str) -> Path:
    """The place of ``folder/file`` in the user's cache folder."""
    return cache_folder("index", hashlib.sha256(os.fsencode(folder)).hexdigest()[:16], file)


def _wait_for_the_clock(state: FileState) -> bool:
    """Whether a later change would bear another time than ``state``; waits some ticks for it, not seconds."""
    changed = max(state.mtime, state.ctime)
    age = time.time_ns() - changed
    if 0 <= age < TICK:
        time.sleep((TICK - age) / 1e9)
        age = TICK
    coarse = changed % 1_000_000_000 == 0
    return not -COARSE < age < (COARSE if coarse else TICK)


@contextmanager
def _locked(folder: Path, news: Callable[[], Any]) -> Iterator[bool]:
    """A lock on the folder itself, which needs no file and no right to write; gives whether it had to wait. Where there
    is none to be had, or its holder tells nothing new for long, everybody works alone."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        waited, last, since = False, news(), time.monotonic()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = True
                if (now := news()) != last:
                    last, since = now, time.monotonic()
                if time.monotonic() - since > PATIENCE:
                    break
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield waited
    finally:
        os.close(descriptor)
