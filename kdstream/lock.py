"""A lock on a folder that disappears with the process that holds it, however it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module is no None: whoever locks asks first

LOCK = ".lock"


@contextlib.contextmanager
def alone(folder: Path, waiting: Callable[[], None], without: Callable[[str], None]) -> Iterator[None]:
    """Nobody else is in such a block for ``folder`` meanwhile, in this process (do not nest them) or another.

    Not the package filelock: where a file system has no locks (NFS without its daemon, some FUSE and overlay mounts),
    its versions up to 3.20 wait for ever, later ones fall back to files that outlive a killed process.

    Args:
        folder: made when missing; holds the file of the lock as long as it is held.
        waiting: called once, before it waits for another one's block to end.
        without: called with the system's words where there are no locks; the block is entered all the same.

    Raises:
        OSError: the folder or the file of the lock cannot be made.
    """
    path = folder / LOCK
    descriptor = _locked(path, waiting, without)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                if _is(descriptor, path):
                    path.unlink()  # who waits with this file open will see that it is gone, and take the next one
            with contextlib.suppress(OSError):
                os.close(descriptor)


def held(folder: Path) -> bool:
    """Whether somebody is in such a block for ``folder``; True, too, where that cannot be found out."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return fcntl is None or _lock(descriptor, None) is not None
    finally:
        os.close(descriptor)


def _locked(path: Path, waiting: Callable[[], None], without: Callable[[str], None]) -> int | None:
    """The open file that carries the lock; None where there are no locks."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # somebody removes the folder just now
            continue
        try:
            why = _lock(descriptor, waiting)
            if why is None and _is(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if why is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            without(why)
            return None


def _lock(descriptor: int, waiting: Callable[[], None] | None) -> str | None:
    """Lock the file; why that is not possible, where it is not. ``waiting``: see :func:`alone`; None = do not wait."""
    if fcntl is None:
        return "not on this system"
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                return "another holds it"
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:  # ENOLCK, ENOTSUP, ENOSYS, ...: each file system has its own
        return error.strerror or str(error)
    return None


def _is(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name: its holder removes it at the end."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
