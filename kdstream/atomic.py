"""Writing files so that a crash or a full disk leaves the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from kdstream.errors import DiskError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
# What systems answer that cannot open or sync a folder, or do not let us; the rename is as safe there as it can be.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either what it held before or all of it, even after a power cut."""
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Gives a file to write to, which takes the place of ``path`` when all is written; see :func:`write_atomic`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # remove_parts gets it at the next start
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` last through a power cut, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def remove_parts(folder: Path, names: Iterable[str]) -> None:
    """Remove what a killed process had written of the files called ``names`` before it could rename it.

    Nobody else may be writing them meanwhile.
    """
    known = "|".join(map(re.escape, names))
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(rf"({known})\.(part|\d+\.tmp)", path.name):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(what: str | os.PathLike[str]) -> Iterator[None]:
    """Meanwhile every OSError is one of writing ``what``, and becomes a line that says what to do.

    Raises:
        DiskError: instead of any other OSError.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        line = f"cannot write {os.fspath(what)}: {reason(error)}; {advice(error)}"
        raise DiskError(line, error.errno) from error


def reason(error: OSError) -> str:
    """What the system said, in its own words."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def advice(error: OSError) -> str:
    """What a person can do about an error of the disk, so that the same command goes on."""
    if error.errno in _NO_ROOM:
        return "make room, then the same command continues"
    if error.errno in _FORBIDDEN:
        return "allow writing there, then the same command continues"
    if error.errno in _GONE:
        return "was its folder removed or renamed meanwhile? put it back, and the same command continues"
    return "see to the disk, then the same command continues"
