"""Images that can only be read one after the other, set down in a file from which each is read by its number."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdstream.convert.split import Split, unique_keys
from kdstream.data.cache_folder import cache_folder
from kdstream.errors import UserError


class Given(NamedTuple):
    """An image as it comes: ``name`` is what its key is made of, ``data`` the encoded image, ``extension`` lower case
    without dot, ``label`` its class number."""

    name: Sequence[str]
    data: bytes
    extension: str
    label: int


class SpooledSplit(Split):
    """Encoded images in one file.

    Args:
        path: of the file.
        offsets: int64 [n+1]; image i is bytes offsets[i]..offsets[i+1]-1.
        extensions: n.
        keys, labels: see :class:`Split`.
        digest: of all images, in order.
        spool: what the file belongs to, which goes with the last who reads it.
    """

    def __init__(
        self,
        path: Path,
        offsets: np.ndarray,
        extensions: Sequence[str],
        keys: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        digest: str,
        spool: Spool | None = None,
    ):
        self.spool = spool
        self.path, self.offsets, self.extensions, self.digest = path, offsets, list(extensions), digest
        self.keys, self.labels = list(keys), np.asarray(labels, np.int64)
        self.numbers = np.arange(len(self.keys))

    def load(self, i: int) -> bytes:
        begin, end = self.offsets[self.numbers[i]], self.offsets[self.numbers[i] + 1]
        with open(self.path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), int(end - begin), int(begin))

    def extension(self, i: int) -> str:
        return self.extensions[i]

    def where(self, i: int) -> str:
        return self.keys[i]

    def nbytes(self) -> int:
        return int((self.offsets[self.numbers + 1] - self.offsets[self.numbers]).sum())

    def subset(self, numbers: Sequence[int] | np.ndarray) -> SpooledSplit:
        chosen = [int(i) for i in numbers]
        names = [self.keys[i] for i in chosen], [self.extensions[i] for i in chosen]
        part = SpooledSplit(self.path, self.offsets, names[1], names[0], self.labels[chosen], self.digest, self.spool)
        part.numbers = self.numbers[chosen]
        return part

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "spool": None}  # who sends it to another process keeps the file

    def identity(self) -> str:
        told = self.digest.encode() + self.numbers.tobytes() + self.labels.tobytes()
        return hashlib.sha256(told + "\0".join(self.keys).encode()).hexdigest()


class Spool:
    """A folder in the user's cache folder for such files; it goes with this object.

    Raises:
        UserError: the cache folder cannot be written.
    """

    def __init__(self) -> None:
        place = cache_folder("spool")
        try:
            place.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(dir=place))
        except OSError as error:
            raise UserError(f"cannot write to {place}: {error.strerror or error}") from error
        self._end = weakref.finalize(self, _remove, self.folder, os.getpid())

    def take(self, name: str, images: Iterable[Given]) -> SpooledSplit:
        """Set all images of a split down.

        Args:
            name: the split's.
            images: read once, in order.

        Raises:
            UserError: the disk is full, or an image cannot be had.
        """
        path, offsets, digest = self.folder / f"{name}.images", [0], hashlib.sha256()
        extensions, names, labels = list[str](), list[Sequence[str]](), list[int]()
        with open(path, "wb") as file:
            for given in images:
                try:
                    file.write(given.data)
                except OSError as error:
                    raise UserError(f"cannot write to {path.parent}: {error.strerror or error}; make room") from error
                digest.update(f"{len(given.data)} {given.extension} {given.label} ".encode() + given.data)
                offsets.append(offsets[-1] + len(given.data))
                extensions.append(given.extension)
                names.append(given.name)
                labels.append(given.label)
        places = np.asarray(offsets, np.int64)
        return SpooledSplit(path, places, extensions, unique_keys(names), labels, digest.hexdigest(), self)


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked from it
        shutil.rmtree(folder, ignore_errors=True)
