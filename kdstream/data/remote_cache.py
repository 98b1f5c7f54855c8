"""The local cache of remote shards: of limited size, shared by all processes, whole and checked files alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdstream.addresses import public
from kdstream.data.cache_folder import cache_folder
from kdstream.data.checksums import descriptor_sha256
from kdstream.data.remote_file import receive_file
from kdstream.errors import UserError
from kdstream.lock import alone, held
from kdstream.web import NotReceived

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module is no None: whoever locks asks first

PLACE, SIZE = "KDSTREAM_REMOTE_CACHE", "KDSTREAM_REMOTE_CACHE_SIZE"
"""Variables of the environment: where the cache lies and how much it may hold are matters of a machine."""
CHECKED = 10**18
"""Time of last change (ns) that a file gets when its checksum has been found right; whatever is written to it later
gives it another. When it was last used, the other time of a file says."""
WAIT = 60.0
"""Seconds to wait for room, where all that the cache holds is in use."""
FRESH = 60.0
"""Seconds within which a file that is used again is not marked again."""


@dataclass(frozen=True)
class Remote:
    """A file behind an address.

    Attributes:
        address: where it is.
        size: its bytes; None = unknown.
        sha256: of its bytes (hex); None = unknown: then it is taken as it comes.
        version: what its server calls this version of it, where there is no checksum.
    """

    address: str
    size: int | None = None
    sha256: str | None = None
    version: str | None = None

    @property
    def key(self) -> str:
        """What the cache calls it: files of the same contents are one, wherever they come from."""
        if self.sha256 is not None:
            return self.sha256[:40]
        named = f"{public(self.address)} {self.size} {self.version}"
        return hashlib.sha256(named.encode()).hexdigest()[:40]


class Kept(NamedTuple):
    """A file of the cache, open for reading; it stays there as long as it is."""

    path: str
    descriptor: int


class NoRoom(UserError):
    """The cache cannot take a file."""


@dataclass(frozen=True)
class RemoteCache:
    """The cache.

    Attributes:
        root: its folder.
        limit: the most bytes that it holds; None = what leaves a tenth of the disk free.
    """

    root: Path
    limit: int | None = None

    @classmethod
    def of_this_machine(cls) -> RemoteCache:
        """As the environment says: see :data:`PLACE` and :data:`SIZE`.

        Raises:
            UserError: a size that is none.
        """
        place, size = os.environ.get(PLACE), os.environ.get(SIZE)
        return cls(Path(place).expanduser() if place else cache_folder("remote"), bytes_of(size) if size else None)

    @contextlib.contextmanager
    def file(self, wanted: Remote, wait: float = WAIT) -> Iterator[Kept]:
        """The file, downloaded if it is not there; it is not removed within the block.

        Args:
            wanted: the file.
            wait: seconds to wait for room.

        Raises:
            NotReceived: it cannot be downloaded, or is not what it should be.
            NoRoom: it is larger than the cache, or everything in it is in use.
            UserError: the cache's folder cannot be written to.
        """
        kept = self.open(wanted, wait)
        try:
            yield kept
        finally:
            os.close(kept.descriptor)

    def open(self, wanted: Remote, wait: float = WAIT) -> Kept:
        """The same without a block: it is removed once its descriptor has been closed, no sooner."""
        path = self._path(wanted)
        try:
            found = self._there(path, wanted)
            if found is None:
                without: list[str] = []
                with alone(Path(path).parent, lambda: None, without.append):
                    found = self._there(path, wanted)  # another process has downloaded it meanwhile
                    if found is None:
                        for left in [] if without else Path(path).parent.glob("*.part"):  # by one that was killed
                            left.unlink(missing_ok=True)
                        found = self._download(Path(path), wanted, wait)
        except OSError as error:
            raise UserError(
                f"cannot keep {public(wanted.address)} in {self.root} ({error.strerror or error}): "
                f"set {PLACE} to a folder with room, or {SIZE} to less than is free"
            ) from error
        return Kept(path, found)

    def has(self, wanted: Remote) -> bool:
        """Whether it is there."""
        return os.path.isfile(self._path(wanted))

    def capacity(self) -> int:
        """The most bytes that it may hold now."""
        if self.limit is not None:
            return self.limit
        place = self.root
        while not place.exists():
            place = place.parent
        disk = shutil.disk_usage(place)
        return max(0, sum(size for _, size, _ in self._files()) + disk.free - disk.total // 10)

    # --- one file

    def _path(self, wanted: Remote) -> str:
        return f"{self.root}/{wanted.key}/file"

    def _there(self, path: str, wanted: Remote) -> int | None:
        """The open file, locked against removal; None where there is none, or one that is damaged, which goes."""
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            return None
        good = False
        try:
            if not _lock(descriptor, exclusive=False):
                return None  # it is being removed
            state = os.fstat(descriptor)
            if state.st_nlink == 0:
                return None
            good = self._is_good(descriptor, state, wanted)
            if not good:
                Path(path).unlink(missing_ok=True)
                return None
            if state.st_mtime_ns != CHECKED or time.time() - state.st_atime > FRESH:
                with contextlib.suppress(OSError):
                    os.utime(path, ns=(time.time_ns(), CHECKED))
            return descriptor
        finally:
            if not good:
                os.close(descriptor)

    def _is_good(self, descriptor: int, state: os.stat_result, wanted: Remote) -> bool:
        if wanted.size is not None and state.st_size != wanted.size:
            return False
        if state.st_mtime_ns == CHECKED:
            return True
        return wanted.sha256 is not None and descriptor_sha256(descriptor) == wanted.sha256

    def _download(self, path: Path, wanted: Remote, wait: float) -> int:
        """Download, check, and put in its place; the open file, locked against removal."""
        part = self._make_room(path.parent, wanted, wait)
        try:
            for again in (True, False):
                receive_file(wanted.address, part, most=wanted.size)
                descriptor = os.open(part, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                size = os.fstat(descriptor).st_size
                if (wanted.size is None or size == wanted.size) and (
                    wanted.sha256 is None or descriptor_sha256(descriptor) == wanted.sha256
                ):
                    break
                os.close(descriptor)
                if not again:
                    raise NotReceived(
                        f"{public(wanted.address)} is not the file that it should be: its checksum differs from that "
                        "in dataset.json (downloaded twice); copy the shard there again"
                    )
            _lock(descriptor, exclusive=False)
            os.utime(part, ns=(time.time_ns(), CHECKED))
            os.replace(part, path)
            return descriptor
        finally:
            part.unlink(missing_ok=True)

    # --- room

    def _make_room(self, folder: Path, wanted: Remote, wait: float) -> Path:
        """Remove what was used least recently until there is room; a file whose name keeps the room."""
        size, end = wanted.size or 0, time.monotonic() + wait
        while True:
            with alone(self.root, lambda: None, lambda why: None):
                limit = self.capacity()
                if size > limit:
                    raise NoRoom(
                        f"{public(wanted.address)} has {size:,} bytes, the cache of remote shards in {self.root} holds "
                        f"at most {limit:,}: set {SIZE}, as {SIZE}=200GB, or {PLACE} to a larger disk"
                    )
                files = self._files()
                used = sum(one for _, one, _ in files)
                for path, one, _ in sorted(files, key=lambda file: file[2]):
                    if used + size <= limit:
                        break
                    used -= one if self._remove(path) else 0
                if used + size <= limit:
                    part = folder / f"{size}.{os.getpid()}.{secrets.token_hex(4)}.part"
                    part.touch()
                    return part
            if time.monotonic() > end:
                raise NoRoom(
                    f"the cache of remote shards in {self.root} holds at most {limit:,} bytes, and all that it holds "
                    f"is in use: set {SIZE} to more, or read with fewer workers"
                )
            time.sleep(0.05)

    def _files(self) -> list[tuple[Path, int, float]]:
        """(path, bytes, when it was used last) of all that takes room; of a download that is under way, its bytes when
        it will be whole."""
        found = []
        with contextlib.suppress(OSError):
            for path in self.root.glob("*/*"):
                part = re.fullmatch(r"(\d+)\.\d+\.\w+\.part", path.name)
                if path.name == "file" or part:
                    with contextlib.suppress(OSError):
                        state = path.stat()
                        size = max(int(part[1]), state.st_size) if part else state.st_size
                        found.append((path, size, state.st_atime if not part else 0.0))
        return found

    def _remove(self, path: Path) -> bool:
        """Remove a file that nobody has open, or what a killed process has left of a download."""
        try:
            if path.name != "file":
                if held(path.parent):
                    return False
                path.unlink()
            else:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    if not _lock(descriptor, exclusive=True):
                        return False
                    path.unlink()
                finally:
                    os.close(descriptor)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def _lock(descriptor: int, exclusive: bool) -> bool:
    """Lock an open file, for as long as it is open; False where another holds it. Where there are no locks, True."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def bytes_of(text: str) -> int:
    """The bytes that a size in words means: ``200GB``, ``1.5TB``, ``500MiB``, ``1000``.

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*", text, re.I)
    if not found:
        raise UserError(f"{SIZE} is {text!r}: write a size, such as 200GB")
    power = " kmgt".index(found[2].lower()) if found[2] else 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def told_size(count: float) -> str:
    """Bytes in words: 26.3 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
