"""What a source of images is: splits of (key, bytes, extension, label), from files or from arrays."""

from __future__ import annotations

import hashlib
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Item(NamedTuple):
    """One image of a source.

    ``key``: readable and unique in its split, without dots. ``data``: the encoded image. ``extension``: lower case,
    without dot. ``label``: class number.
    """

    key: str
    data: bytes
    extension: str
    label: int


class Split(ABC):
    """A sequence of images that are read one by one, when asked for.

    Attributes:
        keys: n distinct keys.
        labels: int64 [n].
        refused: number of an image -> why it cannot be read, as far as is known before it is opened.
    """

    keys: list[str]
    labels: np.ndarray
    refused: Mapping[int, str] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Item:
        return Item(self.keys[i], self.load(i), self.extension(i), int(self.labels[i]))

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))

    @abstractmethod
    def load(self, i: int) -> bytes:
        """The encoded image. Raises OSError when it cannot be read."""

    @abstractmethod
    def extension(self, i: int) -> str:
        """The image's extension."""

    @abstractmethod
    def where(self, i: int) -> str:
        """The image's place, for messages."""

    @abstractmethod
    def nbytes(self) -> int:
        """About how many bytes all images have."""

    @abstractmethod
    def subset(self, numbers: Sequence[int] | np.ndarray) -> Split:
        """The images with these numbers, in this order; small enough to be sent to another process."""

    @abstractmethod
    def identity(self) -> str:
        """A hex hash that changes when the images, keys or labels do."""


@dataclass(frozen=True)
class Source:
    """Splits with a common list of classes.

    Attributes:
        name: kind and place, recorded with the shards.
        classes: names; a label is a position in this list.
        splits: name -> images.
        notes: what a user should know about what was found, one line each.
        root: the folder that is read, if any.
    """

    name: str
    classes: list[str]
    splits: dict[str, Split]
    notes: list[str] = field(default_factory=list)
    root: Path | None = None


# ---- keys


def unique_keys(parts: Iterable[Sequence[str]]) -> list[str]:
    """Keys ``a/b/stem`` from folder names and stems: what WebDataset would misread is replaced by ``_``, and the
    second and further of equal keys get ``-2``, ``-3``, ... Depends on the order only."""
    taken: set[str] = set()
    keys = []
    for names in parts:
        base = key = "/".join(_clean(name) for name in names)
        if base.startswith("__"):  # webdataset takes names like __meta__ for no samples
            base = key = "x" + base
        number = 2
        while key in taken:
            key, number = f"{base}-{number}", number + 1
        taken.add(key)
        keys.append(key)
    return keys


def _clean(name: str) -> str:
    return re.sub(r"[./\\\x00-\x1f\x7f\ud800-\udfff]", "_", name) or "_"


def _extension(name: str) -> str:
    extension = os.path.splitext(name)[1][1:].lower()
    return "jpg" if extension in ("jpeg", "jpe", "jfif") else extension


# ---- splits


class FileSplit(Split):
    """Image files, whose bytes pass through untouched.

    Args:
        root: the folder that ``names`` are relative to.
        names: paths of the files.
        keys, labels: see :class:`Split`.
        states: (size in bytes, modification time in ns) of each file.
        refused: see :class:`Split`.
    """

    def __init__(
        self,
        root: str,
        names: Sequence[str],
        keys: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        states: Sequence[tuple[int, int]] | np.ndarray,
        refused: Mapping[int, str] | None = None,
    ):
        self.root, self.names, self.keys = root, list(names), list(keys)
        self.labels = np.asarray(labels, np.int64).reshape(-1)
        self.states = np.asarray(states, np.int64).reshape(-1, 2)
        self.refused = dict(refused or {})

    def load(self, i: int) -> bytes:
        with open(self.where(i), "rb", buffering=0) as file:
            return file.read()

    def extension(self, i: int) -> str:
        return _extension(self.names[i])

    def where(self, i: int) -> str:
        return os.path.join(self.root, self.names[i])

    def nbytes(self) -> int:
        return int(self.states[:, 0].sum())

    def subset(self, numbers: Sequence[int] | np.ndarray) -> FileSplit:
        names, keys = [self.names[i] for i in numbers], [self.keys[i] for i in numbers]
        refused = {place: self.refused[i] for place, i in enumerate(numbers) if i in self.refused}
        return FileSplit(self.root, names, keys, self.labels[numbers], self.states[numbers], refused)

    def identity(self) -> str:
        digest = hashlib.sha256("\0".join(self.keys).encode())
        digest.update("\0".join(self.names).encode("utf-8", "surrogateescape"))
        digest.update(self.labels.tobytes() + self.states.tobytes())
        return digest.hexdigest()


class ArraySplit(Split):
    """Raw pixels, stored without loss as PNG.

    Args:
        images: uint8 [n,H,W] (grey) or [n,H,W,3] (RGB).
        keys, labels: see :class:`Split`.
    """

    def __init__(self, images: np.ndarray, keys: Sequence[str], labels: Sequence[int] | np.ndarray):
        self.images, self.keys, self.labels = images, list(keys), np.asarray(labels, np.int64)

    def load(self, i: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.images[i]).save(buffer, "PNG")
        return buffer.getvalue()

    def extension(self, i: int) -> str:
        return "png"

    def where(self, i: int) -> str:
        return self.keys[i]

    def nbytes(self) -> int:
        return int(self.images.nbytes)

    def subset(self, numbers: Sequence[int] | np.ndarray) -> ArraySplit:
        return ArraySplit(self.images[numbers], [self.keys[i] for i in numbers], self.labels[numbers])

    def identity(self) -> str:
        digest = hashlib.sha256("\0".join(self.keys).encode())
        digest.update(str(self.images.shape).encode() + self.labels.tobytes())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()
