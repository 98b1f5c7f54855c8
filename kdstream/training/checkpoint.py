"""Checkpoints: written whole or not at all, checked against their checksum, read without executing anything."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from kdstream.atomic import advice, reason, sync_folder
from kdstream.errors import DiskError, UserError

ANEW = "delete it to start anew"
# The file is what torch.save writes, and behind it, where zip readers do not look, one line: the mark and the SHA-256
# of all before it. The state says, too, that there is a sum: one that was lost is not taken for one that never was.
_MARK = b"kdstream sha256 "
_LINE = len(_MARK) + 64 + 1
_SUMMED = "checksum"
_CHUNK = 1 << 20


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Replace ``path`` by ``state`` (tensors, numbers, text, lists and dicts of these) in one step.

    Raises:
        DiskError: the disk is full or the folder cannot be written to; ``path`` is what it was before.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            summing = _Summing(file)
            torch.save({**state, _SUMMED: "sha256"}, summing)  # type: ignore[arg-type]  # it is written to, no more
            file.write(_line(summing.digest))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        cause = next((one for one in (error, error.__cause__, error.__context__) if isinstance(one, OSError)), None)
        why = reason(cause) if cause is not None else " ".join(str(error).split())
        what = advice(cause) if cause is not None else "make room, then the same command continues"
        number = None if cause is None else cause.errno
        raise DiskError(f"cannot write the checkpoint {path}: {why}; {what}", number) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, otherwise: str = ANEW) -> dict[str, Any] | None:
    """The state at ``path``, on the CPU; None where there is none.

    Args:
        path: what :func:`save_checkpoint` wrote. Checkpoints of versions that wrote no checksum are checked by the
            weaker sums that torch keeps of each tensor.
        otherwise: what to do about a file that cannot be used; ends the message.

    Raises:
        UserError: not a checkpoint, damaged (a single bit is enough), or one that holds pickled objects.
    """
    summed = False
    try:
        with path.open("rb") as file:
            summed = _check_sum(file, path, otherwise)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"{path} is no readable checkpoint ({reason(error)}): see to the disk, or {otherwise}"
        ) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds a pickled object, which would run code when read, or is damaged: it is not a checkpoint of "
            f"kdstream; {otherwise}"
        ) from error
    except Exception as error:  # damaged bytes make torch raise many kinds
        if summed:
            raise UserError(f"{path} is undamaged, but cannot be read here: {' '.join(str(error).split())}") from error
        raise UserError(f"{path} is no readable checkpoint ({type(error).__name__}): {otherwise}") from error
    if not isinstance(state, dict) or "fingerprint" not in state:
        raise UserError(f"{path} is not a checkpoint of kdstream: {otherwise}")
    if state.pop(_SUMMED, None) is not None and not summed:
        raise UserError(f"{path} is damaged: its checksum, at its end, is missing; {otherwise}")
    return state


def _check_sum(file: BinaryIO, path: Path, otherwise: str) -> bool:
    """Whether the file has a checksum; it is right then.

    Raises:
        UserError: it is not.
    """
    length = file.seek(0, os.SEEK_END) - _LINE
    file.seek(max(length, 0))
    line = file.read()
    file.seek(0)
    if length > 0 and line.startswith(_MARK):
        digest = hashlib.sha256()
        while length and (chunk := file.read(min(_CHUNK, length))):
            digest.update(chunk)
            length -= len(chunk)
        whole = line == _line(digest.hexdigest())
    else:
        whole = not zipfile.is_zipfile(file) or _entries_are_whole(file)
    if not whole:
        raise UserError(f"{path} is damaged: its bytes do not fit its checksum; {otherwise}")
    return line.startswith(_MARK)


def _entries_are_whole(file: BinaryIO) -> bool:
    file.seek(0)
    with zipfile.ZipFile(file) as entries:
        return entries.testzip() is None


def _line(digest: str) -> bytes:
    return _MARK + digest.encode() + b"\n"


class _Summing:
    """A file that is written once, from its beginning to its end, and sums what passes: no second reading, no copy."""

    def __init__(self, file: BinaryIO):
        self._file, self._sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        """As of a file."""
        self._sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """As of a file."""
        self._file.flush()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that was written."""
        return self._sha256.hexdigest()
