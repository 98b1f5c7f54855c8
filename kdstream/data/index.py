"""The index of a split: where in which shard each member of each sample lies, its key and its label."""

from __future__ import annotations

import math
import mmap
import os
import posixpath
import re
import stat
import struct
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdstream.atomic import replacing
from kdstream.data.tar_members import BLOCK, FILES, FOLDER, HARD_LINK, SPARSE, SYMBOLIC_LINK, Member, members
from kdstream.errors import UserError
from kdstream.terminal import quoted

__all__ = [
    "BLOCK",
    "IMAGE_EXTENSIONS",
    "Index",
    "IndexBuilder",
    "ScannedShard",
    "build_index",
    "scan_shard",
    "split_name",
]

INDEX_VERSION = 1
CHECKED_AT_ONCE = 1 << 28
"""Bytes of an index (3 million samples) up to which all of it is checked when it is loaded."""
PART = 1 << 20
"""Values that are looked at together where all are."""
ALIGNED = 64
MOST_EXTENSIONS, MOST_CLASSES = 1 << 16, 1_000_000
# fmt: off
IMAGE_EXTENSIONS = (
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "ppm", "pgm", "pbm", "pnm", "tif", "tiff", "gif", "jp2", "avif",
)
# fmt: on
"""Members and files with these extensions (lower case, no dot) are images."""


@dataclass
class Index:
    """n samples of m members in S shards. Plain arrays: about 90 bytes a sample, stored as an npz without pickle.

    A loaded index is a map of its file: its arrays are read-only, all processes of a machine share their memory, and
    of a large one only the pages that are asked for are ever read.

    Attributes:
        tag: what the index belongs to; whoever loads it compares.
        shard_names: S file names, without folder.
        shard_bytes: int64 [S], sizes of the files.
        shard: int32 [n], the shard of each sample.
        label: int64 [n].
        first: int64 [n+1]; the members of sample i are first[i]..first[i+1]-1, in the order of their headers.
        offset: int64 [m], where a member's bytes begin in its shard.
        size: int64 [m], how many they are.
        extensions: the distinct extensions.
        extension: uint16 [m], numbers into ``extensions``.
        key_first: int64 [n+1]; key i is key_text[key_first[i]:key_first[i+1]], the bytes as they stand in the tar.
        key_text: uint8.
        largest_label: -1 where there is no sample. None is found out from the labels.
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
    largest_label: int | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def classes(self) -> int:
        """How many the labels show: one more than the largest."""
        if self.largest_label is None:
            self.largest_label = max((int(self.label[part].max()) for part in _parts(len(self))), default=-1)
        return self.largest_label + 1

    def key(self, i: int) -> str:
        """The key of sample i. Bytes that are no UTF-8 stand as surrogate escapes: ``os.fsencode`` gives them back.

        Raises:
            UserError: this entry is damaged.
        """
        begin, end = self.key_first[i].item(), self.key_first[i + 1].item()
        if not 0 <= begin < end <= len(self.key_text):
            raise self._damaged(i, "its key lies outside of the keys")
        return self.key_text[begin:end].tobytes().decode("utf-8", "surrogateescape")

    def members(self, i: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of each member of sample i, in the order of their headers.

        Raises:
            UserError: this entry is damaged: it points outside of the shard.
        """
        begin, end = self.first[i].item(), self.first[i + 1].item()
        if not 0 <= begin < end <= min(len(self.offset), begin + MOST_EXTENSIONS):
            raise self._damaged(i, "its members lie outside of the list")
        part = slice(begin, end)
        length = self.shard_bytes[self.shard_of(i)].item()
        found = []
        for name, offset, size in zip(
            self.extension[part].tolist(), self.offset[part].tolist(), self.size[part].tolist(), strict=True
        ):
            if name >= len(self.extensions) or size < 0 or not 0 <= offset <= length - size:
                raise self._damaged(i, "a member lies beyond the end of its shard")
            found.append((self.extensions[name], offset, size))
        return found

    def shard_of(self, i: int) -> int:
        """The number of the shard that sample i lies in.

        Raises:
            UserError: this entry is damaged: there is no such shard.
        """
        number = self.shard[i].item()
        if not 0 <= number < len(self.shard_names):
            raise self._damaged(i, f"there is no shard {number}")
        return number

    def _damaged(self, i: int, problem: str) -> UserError:
        return UserError(
            f"the index of {self.shard_names[0]} and the other shards is damaged (sample {i}: {problem}); delete the "
            ".index.npz beside them, then it is built anew from the shards"
        )

    def same_as(self, other: Index) -> bool:
        """Whether both point at the same members of the same shards (tags apart)."""
        if self.shard_names != other.shard_names:
            return False
        names = ("shard_bytes", "shard", "label", "first", "offset", "size", "key_first", "key_text")
        for name in names:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                return False
            if any(not np.array_equal(mine[part], theirs[part]) for part in _parts(len(mine))):
                return False
        numbers = {name: number for number, name in enumerate(other.extensions)}
        translated = np.asarray([numbers.get(name, MOST_EXTENSIONS) for name in self.extensions], np.int64)
        return all(
            np.array_equal(translated[self.extension[part]], other.extension[part])
            for part in _parts(len(self.extension))
        )

    def save(self, path: Path) -> None:
        """Write atomically: an npz, uncompressed, whose arrays begin at multiples of 64 bytes, so that they can be used
        where they lie in the file."""
        arrays: dict[str, Any] = {"version": INDEX_VERSION, **{f.name: getattr(self, f.name) for f in fields(self)}}
        arrays["largest_label"] = self.classes - 1
        with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, value in arrays.items():
                entry = zipfile.ZipInfo(f"{name}.npy")
                before = file.tell() + _LOCAL_HEADER.size + len(entry.filename) + _ZIP64_EXTRA + _PADDING.size
                padding = -before % ALIGNED
                entry.extra = _PADDING.pack(_PADDING_ID, padding) + bytes(padding)
                with archive.open(entry, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)

    @classmethod
    def load(cls, path: Path, shard_bytes: int | None = None) -> Index:
        """Map what :meth:`save` wrote, now or in an earlier version, and check that it holds together; nothing in it is
        executed.

        An index of more than :data:`CHECKED_AT_ONCE` bytes is not read here: each entry is checked when it is used.

        Args:
            path: the file.
            shard_bytes: of all shards together; an index that is larger than what it points at is refused unread.

        Raises:
            UserError: the file is damaged or of another version.
        """
        hint = "delete it, then it is built anew from the shards"
        try:
            length = path.stat().st_size
            if shard_bytes is not None and length > shard_bytes + (1 << 20):
                raise UserError(f"index {path} is damaged (larger than all of its shards together); {hint}")
            if not zipfile.is_zipfile(path):
                raise UserError(f"index {path} is damaged (no npz file); {hint}")
            data = _mapped(path, CHECKED_AT_ONCE)
            version = int(data["version"]) if "version" in data else -1
            if version != INDEX_VERSION:
                raise UserError(f"index {path}: version {version} instead of {INDEX_VERSION}; {hint}")
            arrays: dict[str, Any] = {f.name: data[f.name] for f in fields(cls) if f.name != "largest_label"}
            arrays["tag"] = str(arrays["tag"])
            for name in ("shard_names", "extensions"):
                arrays[name] = [str(value) for value in arrays[name].ravel()]
            index = cls(**arrays, largest_label=int(data["largest_label"]) if "largest_label" in data else None)
        except UserError:
            raise
        except Exception as error:  # damaged files make numpy and zipfile raise many kinds
            raise UserError(f"index {path} is damaged ({error}); {hint}") from error
        problem = index._outer_problem() or (index._inner_problem() if length <= CHECKED_AT_ONCE else None)
        if problem:
            raise UserError(f"index {path} is damaged ({problem}); {hint}")
        return index

    def _outer_problem(self) -> str | None:
        """Why its arrays do not fit each other, or None; whatever its size, at no cost."""
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
            if value[0] != 0 or value[-1] != total:
                return f"{name} does not lead from 0 to {total}"
        if any(Path(name).name != name for name in self.shard_names):
            return "a shard's name holds a folder"
        if self.largest_label is not None and not -1 <= self.largest_label < MOST_CLASSES:
            return "its largest label is out of range"
        return None

    def _inner_problem(self) -> str | None:
        """Why reading a sample by this index would go wrong, or None; looks at all of it, a part at a time."""
        largest = -1
        for part in _parts(len(self)):
            inner = slice(part.start, part.stop + 1)
            for name in ("first", "key_first"):
                if (np.diff(getattr(self, name)[inner]) < 1).any():
                    return f"{name} does not increase"
            label, shard, first = self.label[part], self.shard[part], self.first[inner]
            if (
                label.min() < 0
                or label.max() >= MOST_CLASSES
                or shard.min() < 0
                or shard.max() >= len(self.shard_names)
            ):
                return "a label or shard number is out of range"
            if first[0] < 0 or first[-1] > len(self.offset):
                return "first is out of range"
            largest = max(largest, int(label.max()))
            members = slice(int(first[0]), int(first[-1]))
            size, offset = self.size[members], self.offset[members]
            end = self.shard_bytes[shard].repeat(np.diff(first))
            if size.min() < 0 or offset.min() < 0 or (offset > end - size).any():
                return "a member lies beyond the end of its shard"
            if self.extension[members].max() >= len(self.extensions):
                return "an extension number is out of range"
        return "its largest label is another" if self.largest_label not in (None, largest) else None


def _parts(count: int) -> Iterator[slice]:
    """Slices of at most :data:`PART` that make up ``count`` values."""
    return (slice(start, min(start + PART, count)) for start in range(0, count, PART))


_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ZIP64_EXTRA = 20
_PADDING, _PADDING_ID = struct.Struct("<HH"), 0xD935  # the extra field by which Android's zipalign does the same


def _mapped(path: Path, checked: int) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed npz where they lie in the file, read-only.

    Args:
        path: the file. It must not be truncated while it is in use; whoever replaces it by another does no harm.
        checked: where the file has more bytes, only arrays of up to a 64th of them are compared with their checksums.

    Raises:
        ValueError, zipfile.BadZipFile, struct.error, OSError: an array that is compressed, not as large as it says,
            damaged, or holds objects.
    """
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        everything = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = memoryview(everything)
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > length:
                raise ValueError(f"{entry.filename} is compressed")
            *_, name, extra = _LOCAL_HEADER.unpack_from(everything, entry.header_offset)
            begin = entry.header_offset + _LOCAL_HEADER.size + name + extra
            if entry.header_offset < 0 or begin + entry.file_size > length:
                raise ValueError(f"{entry.filename} runs past the end of the file")
            everything.seek(begin)
            version = np.lib.format.read_magic(everything)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(everything)
            if dtype.hasobject:
                raise ValueError(f"{entry.filename} holds objects")
            count = math.prod(shape)
            if count * dtype.itemsize != begin + entry.file_size - everything.tell():
                raise ValueError(f"{entry.filename} is not as large as it says")
            looked_at = length <= checked or entry.file_size <= checked // 64
            if looked_at and _crc(view[begin : begin + entry.file_size]) != entry.CRC:
                raise ValueError(f"the checksum of {entry.filename} differs")
            values = np.frombuffer(everything, dtype, count, everything.tell()) if count else np.zeros(0, dtype)
            column = entry.filename.removesuffix(".npy")
            if not looked_at and column != "label":  # labels are counted from the first to the last
                page = begin // mmap.PAGESIZE * mmap.PAGESIZE
                everything.madvise(mmap.MADV_RANDOM, page, begin + entry.file_size - page)
            found[column] = values.reshape(shape)
    return found


def _crc(view: memoryview) -> int:
    value = 0
    for start in range(0, len(view), 1 << 22):
        value = zlib.crc32(view[start : start + (1 << 22)], value)
    return value


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
            number = self._extensions.setdefault(extension, len(self._extensions))
            if number >= MOST_EXTENSIONS:
                name = f"{key}.{extension}"
                raise UserError(
                    f"shard {self._shards[-1][0]}: more than {MOST_EXTENSIONS:,} different extensions up to "
                    f"{quoted(name)}; a sample's key ends at the first dot of the file name: rename the files"
                )
            self._extension.append(number)
            self._offset.append(offset)
            self._size.append(size)
        self._first.append(len(self._offset))
        self._keys += key.encode("utf-8", "surrogateescape")
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
            key_text=np.frombuffer(self._keys, np.uint8) if self._keys else np.zeros(0, np.uint8),
        )


class Scanned(NamedTuple):
    """A sample as found in a shard; ``members`` are (extension, offset, size) in the order of their headers."""

    key: str
    label: int
    members: list[tuple[str, int, int]]


@dataclass
class ScannedShard:
    """What :func:`scan_shard` found.

    Attributes:
        name: file name.
        bytes: its size.
        samples: in order.
        told: what a user should know: how many members belong to no sample, by kind.
        examples: a member of each kind.
    """

    name: str
    bytes: int
    samples: list[Scanned] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def tell(self, kind: str, example: str) -> None:
        """Count one of a kind."""
        self.told[kind] += 1
        self.examples.setdefault(kind, example)


def build_index(
    paths: Sequence[Path],
    tag: str,
    on_shard: Callable[[ScannedShard], None] = lambda shard: None,
    scans: Iterable[ScannedShard] | None = None,
) -> Index:
    """Index the samples of WebDataset tars.

    Args:
        paths: the shards, in order; all in one folder.
        tag: see :class:`Index`.
        on_shard: told after each shard what it holds.
        scans: what :func:`scan_shard` gives for each of them, where somebody scans already.

    Raises:
        UserError: see :func:`scan_shard`.
    """
    builder = IndexBuilder()
    for shard in map(scan_shard, paths) if scans is None else scans:
        builder.add_shard(shard.name, shard.bytes)
        for sample in shard.samples:
            builder.add_sample(*sample)
        on_shard(shard)
    return builder.finish(tag)


def scan_shard(path: Path) -> ScannedShard:
    """Read the headers of a WebDataset tar and find its samples, grouped as webdataset groups them.

    Neighbouring members whose names agree up to the first dot of the file name are one sample. Hard and symbolic
    links to members of the same tar are read where these lie; other links are counted and left out, and nothing
    outside of the file is ever read. Names like ``../x`` are only keys: nothing is written to disk. Tars joined end to
    end are read to the last. Only uncompressed tars: samples of compressed ones cannot be read at random positions.

    Raises:
        UserError: a shard is missing, truncated, damaged, compressed or no tar; a sample lacks ``.cls`` or an image;
            a class is no whole number.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise UserError(f"cannot read shard {path}: it is no regular file")
        with open(path, "rb", buffering=0) as file:
            return _scan(path, file.fileno(), os.fstat(file.fileno()).st_size)
    except FileNotFoundError as error:
        raise UserError(f"shard {path} is missing") from error
    except OSError as error:
        raise UserError(f"cannot read shard {path}: {error.strerror or error}") from error


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


APART = "; the members of a sample have to be neighbours in the tar"
OWN_NAMES = frozenset(("__key__", "__url__", "index", "image", "label", "rng_key", "variants", "qualities"))
"""What kdstream itself puts into a sample; a member of such an extension would be overwritten or misread."""


def _scan(path: Path, file: int, length: int) -> ScannedShard:
    shard = ScannedShard(path.name, length)
    groups: list[tuple[str, list[tuple[str, int, int]]]] = []
    links: dict[tuple[int, int], Member] = {}  # (group, place in it) -> a link whose bytes are looked up at the end
    archive, extensions = 0, set[str]()
    for member in members(path, file, length):
        kind = _no_part_of_a_sample(member)
        if kind is not None:
            if kind:
                shard.tell(kind, member.name)
            continue
        if member.sparse:
            raise UserError(f"shard {path}: {quoted(member.name)} is a sparse member, write the tar without --sparse")
        key, extension = split_name(member.name)  # type: ignore[misc]  # None was left out above
        if not groups or groups[-1][0] != key or member.archive != archive:
            groups.append((key, []))
            extensions = set()
        archive, found = member.archive, groups[-1][1]
        if extension in extensions:
            raise UserError(f"shard {path}: two members are called {quoted(member.name)}")
        if member.type not in FILES:
            links[len(groups) - 1, len(found)] = member
        found.append((extension, member.offset, member.size))
        extensions.add(extension)
    lost = _follow(path, file, length, shard, groups, links) if links else {}
    unfit, problem = 0, ""
    for key, found in groups:
        label = _label(file, key, found)
        if isinstance(label, str):
            unfit, problem = unfit + 1, problem or label + lost.get(key, "")
            continue
        shard.samples.append(Scanned(key, label, found))
        images = [extension for extension, _, _ in found if extension in IMAGE_EXTENSIONS]
        if len(images) > 1:
            shard.tell("samples with several images, of which the first is read", f"{key}: .{', .'.join(images)}")
    if unfit:
        more = f" ({unfit:,} of the {len(groups):,} samples in this shard do not fit)" if unfit > 1 else ""
        raise UserError(f"shard {path}: {problem}{more}")
    return shard


def _no_part_of_a_sample(member: Member) -> str | None:
    """Why a member is left out; "" where that need not be told, None for those that belong to a sample."""
    if member.type == FOLDER:
        return ""
    if member.type not in (*FILES, SPARSE, HARD_LINK, SYMBOLIC_LINK):
        return "members left out that are no files"
    name = split_name(member.name)
    if name is None:
        if re.match(r"__[^/]*__(/|$)", member.name):
            return ""
        hidden = member.name.rpartition("/")[2].startswith(".")
        return "hidden files left out" if hidden else "files without an extension left out"
    return f"members left out whose extension kdstream uses itself, .{name[1]}" if name[1] in OWN_NAMES else None


def _follow(
    path: Path,
    file: int,
    length: int,
    shard: ScannedShard,
    groups: list[tuple[str, list[tuple[str, int, int]]]],
    links: dict[tuple[int, int], Member],
) -> dict[str, str]:
    """Put the bytes that links stand for into ``groups``. Those that cannot be found are told and taken out; returns
    what to say of them, by key."""
    targets = _targets(members(path, file, length))
    lost: set[tuple[int, int]] = set()
    said: dict[str, str] = {}
    for (group, place), link in links.items():
        target = targets.get(link.offset)
        if target is None:
            shard.tell("links left out to files that are not in their tar", f"{link.name} -> {link.target}")
            lost.add((group, place))
            text = f"; {quoted(link.name)} is a link to {quoted(link.target)}, which is not in this tar"
            said[groups[group][0]] = text
        elif target.sparse:
            raise UserError(f"shard {path}: {quoted(target.name)} is a sparse member, write the tar without --sparse")
        else:
            extension = groups[group][1][place][0]
            groups[group][1][place] = (extension, target.offset, target.size)
    for group in {group for group, _ in lost}:
        kept = [member for place, member in enumerate(groups[group][1]) if (group, place) not in lost]
        groups[group][1][:] = kept
    groups[:] = [group for group in groups if group[1]]
    return said


def _targets(found: Iterable[Member]) -> dict[int, Member]:
    """The file that each link stands for, by the link's offset; links to anything else are left out.

    It is what unpacking would leave under the name: for a hard link the file of that name before it, for a symbolic one
    the last of that name, seen from the folder that the link lies in. Joined archives do not see each other.
    """
    targets: dict[int, Member] = {}
    names: dict[str, Member] = {}
    symbolic: list[Member] = []

    def finish() -> None:
        for link in symbolic:
            target = _behind_symbolic(names, link)
            if target is not None:
                targets[link.offset] = target
        names.clear()
        symbolic.clear()

    archive = 0
    for member in found:
        if member.archive != archive:
            finish()
            archive = member.archive
        if member.type == HARD_LINK:
            target = names.get(posixpath.normpath(member.target))
            if target is None:
                continue
            if target.type == SYMBOLIC_LINK:
                member = member._replace(type=SYMBOLIC_LINK, target=target.target)
            else:
                targets[member.offset] = names[posixpath.normpath(member.name)] = target
                continue
        if member.type == SYMBOLIC_LINK:
            symbolic.append(member)
        if member.type in (*FILES, SPARSE, SYMBOLIC_LINK):
            names[posixpath.normpath(member.name)] = member
    finish()
    return targets


def _behind_symbolic(names: dict[str, Member], link: Member) -> Member | None:
    for _ in range(40):  # as many as Linux follows
        target = names.get(posixpath.normpath(posixpath.join(posixpath.dirname(link.name), link.target)))
        if target is None or target.type != SYMBOLIC_LINK:
            return target
        link = target
    return None


def _label(file: int, key: str, parts: list[tuple[str, int, int]]) -> int | str:
    """The class number of a sample, or what is wrong with the sample."""
    places = {extension: (offset, size) for extension, offset, size in parts}
    if "cls" not in places:
        return f"sample {quoted(key)} has no .cls member with its class number, only {_listed(places)}{APART}"
    if not any(extension in IMAGE_EXTENSIONS for extension in places):
        return f"sample {quoted(key)} has no image (.jpg, .png, ...), only {_listed(places)}{APART}"
    offset, size = places["cls"]
    text = os.pread(file, min(size, 40), offset)
    if size > 40 or not re.fullmatch(rb"\s*0*[0-9]{1,6}\s*", text):
        found = text[:20].decode("utf-8", "replace")
        return f"class of sample {quoted(key)} is {found!r}, not a whole number from 0 to 999999"
    return int(text)


def _listed(extensions: Iterable[str]) -> str:
    some = [f".{extension}" for extension in extensions][:8]
    return ", ".join(name if name.isprintable() and len(name) < 20 else quoted(name) for name in some)
