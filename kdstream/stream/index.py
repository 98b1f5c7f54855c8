"""The index of a split: where in which shard each member of each sample lies, its key and its label."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from kdstream.atomic import write_atomic
from kdstream.errors import UserError

INDEX_VERSION = 1
BLOCK = 512
# fmt: off
IMAGE_EXTENSIONS = (
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "ppm", "pgm", "pbm", "pnm", "tif", "tiff", "gif", "jp2", "avif",
)
# fmt: on
"""Members and files with these extensions (lower case, no dot) are images."""


@dataclass
class Index:
    """n samples of m members in S shards. Plain arrays: about 90 bytes a sample, stored as an npz without pickle.

    Attributes:
        tag: what the index belongs to; whoever loads it compares.
        shard_names: S file names, without folder.
        shard_bytes: int64 [S], sizes of the files.
        shard: int32 [n], the shard of each sample.
        label: int64 [n].
        first: int64 [n+1]; the members of sample i are first[i]..first[i+1]-1, in file order.
        offset: int64 [m], where a member's bytes begin in its shard.
        size: int64 [m], how many they are.
        extensions: the distinct extensions.
        extension: uint16 [m], numbers into ``extensions``.
        key_first: int64 [n+1]; key i is UTF-8 in key_text[key_first[i]:key_first[i+1]].
        key_text: uint8.
    """

    tag: str
    shard_names: list[str]
    shard_bytes: np.ndarray
    shard: np.ndarray
    label: np.ndarray
    first: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    extensions: list[str]
    extension: np.ndarray
    key_first: np.ndarray
    key_text: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def key(self, i: int) -> str:
        """The key of sample i."""
        return self.key_text[self.key_first[i] : self.key_first[i + 1]].tobytes().decode("utf-8")

    def members(self, i: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of each member of sample i, in file order."""
        part = slice(self.first[i], self.first[i + 1])
        names = [self.extensions[e] for e in self.extension[part].tolist()]
        return list(zip(names, self.offset[part].tolist(), self.size[part].tolist(), strict=True))

    def same_as(self, other: Index) -> bool:
        """Whether both point at the same members of the same shards (tags apart)."""
        names = [f.name for f in fields(self) if f.name not in ("tag", "extensions", "extension")]
        if any(not np.array_equal(getattr(self, name), getattr(other, name)) for name in names):
            return False
        mine, theirs = np.asarray(self.extensions, str), np.asarray(other.extensions, str)
        return np.array_equal(mine[self.extension], theirs[other.extension])

    def save(self, path: Path) -> None:
        """Write atomically."""
        arrays = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        buffer = io.BytesIO()
        np.savez(buffer, version=np.asarray(INDEX_VERSION), **arrays)
        write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Index:
        """Read what :meth:`save` wrote and check that it holds together; nothing in it is executed.

        Raises:
            UserError: the file is damaged or of another version.
        """
        hint = "delete it, then it is built anew from the shards"
        try:
            if not zipfile.is_zipfile(path):
                raise UserError(f"index {path} is damaged (no npz file); {hint}")
            with np.load(path, allow_pickle=False) as data:
                version = int(data["version"]) if "version" in data.files else -1
                if version != INDEX_VERSION:
                    raise UserError(f"index {path}: version {version} instead of {INDEX_VERSION}; {hint}")
                arrays = {f.name: data[f.name] for f in fields(cls)}
        except UserError:
            raise
        except Exception as error:  # damaged files make numpy and zipfile raise many kinds
            raise UserError(f"index {path} is damaged ({error}); {hint}") from error
        arrays["tag"] = str(arrays["tag"])
        for name in ("shard_names", "extensions"):
            arrays[name] = [str(value) for value in arrays[name].ravel()]
        index = cls(**arrays)
        problem = index._problem()
        if problem:
            raise UserError(f"index {path} is damaged ({problem}); {hint}")
        return index

    def _problem(self) -> str | None:
        """Why reading by this index could go wrong, or None. Everything that `members` trusts is looked at."""
        kinds = {"shard": np.int32, "extension": np.uint16, "key_text": np.uint8}
        for name in ("shard_bytes", "shard", "label", "first", "offset", "size", "extension", "key_first", "key_text"):
            value = getattr(self, name)
            if value.ndim != 1 or value.dtype != kinds.get(name, np.int64):
                return f"{name} is {value.dtype} with {value.ndim} dimensions"
        n, m, shards = len(self), len(self.offset), len(self.shard_names)
        lengths = (len(self.shard), len(self.first), len(self.key_first), len(self.size), len(self.extension))
        if lengths != (n, n + 1, n + 1, m, m) or len(self.shard_bytes) != shards:
            return "its arrays differ in length"
        for name, total in (("first", m), ("key_first", len(self.key_text))):
            value = getattr(self, name)
            if value[0] != 0 or value[-1] != total or (np.diff(value) < 1).any():
                return f"{name} does not increase from 0 to {total}"
        if any(Path(name).name != name for name in self.shard_names):
            return "a shard's name holds a folder"
        if n == 0:
            return None
        if self.label.min() < 0 or self.shard.min() < 0 or self.shard.max() >= shards:
            return "a label or shard number is out of range"
        end = self.shard_bytes[self.shard].repeat(np.diff(self.first))
        if self.size.min() < 0 or self.offset.min() < 0 or (self.offset > end - self.size).any():
            return "a member lies beyond the end of its shard"
        inside = np.ones(max(m - 1, 0), bool)
        inside[self.first[1:-1] - 1] = False
        if (np.diff(self.offset)[inside] < self.size[:-1][inside]).any():
            return "members of a sample are not in file order"
        if self.extension.max() >= len(self.extensions):
            return "an extension number is out of range"
        return None


class IndexBuilder:
    """Collects samples, shard after shard, into an :class:`Index`. Its memory is that of the index."""

    def __init__(self) -> None:
        self._shards: list[tuple[str, int]] = []
        self._shard, self._label = array("i"), array("q")
        self._first, self._key_first = array("q", [0]), array("q", [0])
        self._offset, self._size, self._extension = array("q"), array("q"), array("H")
        self._keys = bytearray()
        self._extensions: dict[str, int] = {}

    def add_shard(self, name: str, size: int) -> None:
        """Begin a shard of ``size`` bytes; the samples that follow are its."""
        self._shards.append((name, size))

    def add_sample(self, key: str, label: int, members: Sequence[tuple[str, int, int]]) -> None:
        """A sample of the shard begun last; ``members`` as :meth:`Index.members` gives them."""
        self._shard.append(len(self._shards) - 1)
        self._label.append(label)
        for extension, offset, size in members:
            self._extension.append(self._extensions.setdefault(extension, len(self._extensions)))
            self._offset.append(offset)
            self._size.append(size)
        self._first.append(len(self._offset))
        self._keys += key.encode("utf-8", "replace")
        self._key_first.append(len(self._keys))

    def finish(self, tag: str) -> Index:
        """The index of all that was added."""
        return Index(
            tag=tag,
            shard_names=[name for name, _ in self._shards],
            shard_bytes=np.asarray([size for _, size in self._shards], np.int64),
            shard=np.asarray(self._shard, np.int32),
            label=np.asarray(self._label, np.int64),
            first=np.asarray(self._first, np.int64),
            offset=np.asarray(self._offset, np.int64),
            size=np.asarray(self._size, np.int64),
            extensions=list(self._extensions),
            extension=np.asarray(self._extension, np.uint16),
            key_first=np.asarray(self._key_first, np.int64),
            key_text=np.frombuffer(bytes(self._keys), np.uint8),
        )


class Scanned(NamedTuple):
    """A sample as found in a shard; ``members`` are (extension, offset, size) in file order."""

    key: str
    label: int
    members: list[tuple[str, int, int]]


def build_index(
    paths: Sequence[Path], tag: str, on_shard: Callable[[Path, list[Scanned]], None] = lambda path, samples: None
) -> Index:
    """Read the headers of WebDataset tars and index their samples, grouped as webdataset groups them.

    Neighbouring regular members whose names agree up to the first dot of the file name are one sample. Links,
    folders and devices are left out and never followed; nothing is written to disk, so names like ``../x`` are
    only keys. Only uncompressed tars: samples of compressed ones cannot be read at random positions.

    Args:
        paths: the shards, in order; all in one folder.
        tag: see :class:`Index`.
        on_shard: told after each shard what it holds.

    Raises:
        UserError: a shard is missing, truncated, damaged, compressed or no tar; a sample lacks ``.cls`` or an image;
            a class is no whole number.
    """
    builder = IndexBuilder()
    for path in paths:
        try:
            with open(path, "rb") as file:
                length = os.fstat(file.fileno()).st_size
                samples = _scan_shard(path, file, length)
        except FileNotFoundError as error:
            raise UserError(f"shard {path} is missing") from error
        except OSError as error:
            raise UserError(f"cannot read shard {path}: {error.strerror or error}") from error
        builder.add_shard(path.name, length)
        for sample in samples:
            builder.add_sample(*sample)
        on_shard(path, samples)
    return builder.finish(tag)


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a tar member by WebDataset's naming; None for what is no part of a sample.

    The key ends at the first dot of the file name; the extension is lower case. Hidden files (``._0001.jpg``) and
    names that begin with ``__meta__`` belong to no sample.
    """
    if re.match(r"__[^/]*__(/|$)", name):
        return None
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot else None


def _scan_shard(path: Path, file: BinaryIO, length: int) -> list[Scanned]:
    if file.read(2) == b"\x1f\x8b":
        raise UserError(f"shard {path} is compressed: unpack it with gunzip, samples are read at random positions")
    file.seek(0)
    groups: list[tuple[str, list[tuple[str, int, int]]]] = []
    try:
        tar = tarfile.open(fileobj=file, mode="r:", errors="replace")  # noqa: SIM115 (the caller closes the file)
        while (member := tar.next()) is not None:
            tar.members = []  # tarfile keeps every header otherwise
            if member.offset_data + (member.size if member.isreg() else 0) > length:
                raise UserError(f"shard {path} is truncated: {member.name!r} runs past its end ({length} bytes)")
            name = split_name(member.name) if member.isreg() else None
            if name is None:
                continue
            if member.issparse():
                raise UserError(f"shard {path}: {member.name!r} is a sparse member, write the tar without --sparse")
            key, extension = name
            if not groups or groups[-1][0] != key:
                groups.append((key, []))
            members = groups[-1][1]
            if any(extension == other for other, _, _ in members):
                raise UserError(f"shard {path}: two members are called {member.name!r}")
            members.append((extension, member.offset_data, member.size))
        end = tar.offset
    except tarfile.TarError as error:
        raise UserError(f"shard {path} is no tar file or damaged ({error})") from error
    # tarfile takes a damaged or cut header for the end of the archive: what stands there decides.
    trailer = os.pread(file.fileno(), BLOCK, end)
    if len(trailer) < BLOCK:
        raise UserError(f"shard {path} is truncated: it ends at byte {length} without the tar end mark")
    if trailer.strip(b"\0"):
        raise UserError(f"shard {path} is damaged: no tar header at byte {end}")
    return [Scanned(key, _label(path, file, key, members), members) for key, members in groups]


def _label(path: Path, file: BinaryIO, key: str, members: list[tuple[str, int, int]]) -> int:
    found = {extension: (offset, size) for extension, offset, size in members}
    names = ", ".join(f".{extension}" for extension in found)
    if "cls" not in found:
        raise UserError(f"shard {path}: sample {key!r} has no .cls member with its class number, only {names}")
    if not any(extension in IMAGE_EXTENSIONS for extension in found):
        raise UserError(f"shard {path}: sample {key!r} has no image (.jpg, .png, ...), only {names}")
    offset, size = found["cls"]
    text = os.pread(file.fileno(), min(size, 40), offset)
    if size > 40 or not re.fullmatch(rb"\s*[0-9]{1,6}\s*", text):
        shown = text[:20].decode("utf-8", "replace")
        raise UserError(f"shard {path}: class of sample {key!r} is {shown!r}, not a whole number from 0 to 999999")
    return int(text)
