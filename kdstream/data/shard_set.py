"""One split of a data set, opened: any sample by its number, with one read."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdstream.data.checksums import (
    Checksum,
    FileState,
    descriptor_sha256,
)
from kdstream.data.dataset_info import (
    DATASET_FILE,
    Channels,
    DatasetInfo,
    Size,
)
from kdstream.data.index import Index
from kdstream.errors import UserError

if TYPE_CHECKING:
    from kdstream.batch import Sample


COUNTED = 1 << 22
"""Labels that are counted together."""
OPEN_FILES = 256
"""Shards that a split holds open per process, at most, and an eighth of what the system allows a process."""
ONE_READ = 1 << 16
"""Bytes between the members of a sample that are rather read than jumped over."""


class ShardSet:
    """One split of a data set: n samples, read by number. Made by
    :func:`kdstream.data.shards.open_shards`.

    Reading needs no shared position in any file, hence an instance may be used from several threads and after a
    fork. It pickles as its path; a process that unpickles it opens it anew and checks that it is the same.

    Attributes:
        name: the data set folder's name.
        split: ``train``, ``test``, ...; ``all`` for a folder of foreign tars whose name tells no split.
        path: the folder that holds the shards, absolute.
        classes: names of the C classes; ``"0"``, ``"1"``, ... for foreign sets.
        labels: int64 [n], read-only, each in 0..C-1.
        mean, std: RGB in [0,1], of the pixels of the train split (of this one when there is no train split).
        image_size: (height, width) when all images of the split have one size, else None.
        fingerprint: hex hash of the split's contents.
        notes: what a user should know, a line each: what of a foreign set was left out, and how much.
        facts: how labels and samples differ from the shards' own, in plain values; see :mod:`kdstream.data.altered`.
        decoded: what :mod:`kdstream.stream.cache` keeps of it in memory, for all streams of this instance.
    """

    def __init__(
        self,
        *,
        name: str,
        split: str,
        path: Path,
        classes: Sequence[str],
        mean: Channels,
        std: Channels,
        image_size: Size | None,
        fingerprint: str,
        index: Index,
        checksums: Sequence[Checksum],
        source: str,
        reopen: Callable[[str, str], ShardSet],
        notes: Sequence[str] = (),
    ):
        self.name, self.split, self.path = name, split, path
        self.classes = list(classes)
        self.mean, self.std = mean, std
        self.image_size = image_size
        self.fingerprint = fingerprint
        self.labels = index.label
        self.labels.flags.writeable = False
        self.notes = list(notes)
        self.facts: dict[str, Any] = {}
        self.decoded: dict[tuple[str, str], Any] = {}
        self._index = index
        self._source, self._reopen = source, reopen
        self._shards = [_Shard(str(path / name), made) for name, made in zip(index.shard_names, checksums, strict=True)]
        self._file = lru_cache(_open_files())(_Descriptor)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    @property
    def largest_label(self) -> int:
        """-1 where there are no samples."""
        return self._index.classes - 1

    @property
    def shard_names(self) -> list[str]:
        """File names of the S shards."""
        return self._index.shard_names

    @property
    def shard_numbers(self) -> np.ndarray:
        """int32 [n], the shard of each sample."""
        return self._index.shard

    @property
    def extensions(self) -> list[str]:
        """Those that members have."""
        return self._index.extensions

    @property
    def nbytes(self) -> int:
        """Of all shards together."""
        return int(self._index.shard_bytes.sum())

    def members(self, index: int) -> list[str]:
        """The extensions of a sample's members, without reading it."""
        return [extension for extension, _, _ in self._index.members(self._number(index))]

    def class_counts(self) -> np.ndarray:
        """int64 [C], how many samples each class has; looks at all labels, a part at a time."""
        counts = np.zeros(self.num_classes, np.int64)
        for start in range(0, len(self), COUNTED):
            counts += np.bincount(self.labels[start : start + COUNTED], minlength=self.num_classes)
        return counts

    def number_classes(self, count: int) -> None:
        """Take the labels for numbers of ``count`` classes, of which not all need to occur.

        Raises:
            UserError: a label is not below ``count``, or the classes have names, which say how many there are.
        """
        if count == self.num_classes:
            return
        if any(name != str(number) for number, name in enumerate(self.classes)):
            raise UserError(
                f"{self.name} names its {self.num_classes} classes, so there are not {count}: a number of classes is "
                "for labels that are numbers"
            )
        if self.largest_label >= count:
            raise UserError(
                f"{self.name}/{self.split} has a sample of class {self.largest_label}, so there are not {count}"
            )
        self.classes = [str(number) for number in range(count)]

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"ShardSet({self.name}/{self.split}: {len(self)} samples, {self.num_classes} classes)"

    def __reduce__(self):
        return self._reopen, (self._source, self.fingerprint)

    def key(self, index: int) -> str:
        """The sample's ``__key__``, without reading it."""
        return self._index.key(self._number(index))

    def read(self, index: int) -> Sample:
        """Sample number ``index`` (0..n-1) as it stands in its shard, by one read.

        Returns:
            ``__key__`` and ``__url__`` (str), every member by extension (bytes; ``jpg``, ``cls``, ...), and
            ``index`` (int).

        Raises:
            IndexError: no such number.
            UserError: the shard is missing, shorter than the index says, or cannot be read.
        """
        i = self._number(index)
        shard = self._shards[self._index.shard_of(i)]
        members = self._index.members(i)
        sample: Sample = {"__key__": self._index.key(i), "__url__": shard.path}
        start = min(offset for _, offset, _ in members)
        length = max(offset + size for _, offset, size in members) - start
        if length <= sum(size for _, _, size in members) + ONE_READ:
            data = self._read_bytes(shard, start, length)
            for extension, offset, size in members:
                sample[extension] = data[offset - start : offset - start + size]
        else:  # of links the bytes lie elsewhere
            for extension, offset, size in members:
                sample[extension] = self._read_bytes(shard, offset, size)
        sample["index"] = i
        return sample

    @property
    def shard_places(self) -> list[str]:
        """Paths or addresses of the S shards."""
        return [shard.path for shard in self._shards]

    def counts(self) -> np.ndarray:
        """int64 [S]: how many samples each shard has; they are numbered shard after shard.

        Raises:
            UserError: an index that does not go through the shards in their order.
        """
        shard = self._index.shard
        if len(shard) and (np.diff(shard) < 0).any():
            raise UserError(f"the index of {self.name}/{self.split} does not go through its shards in order")
        return np.bincount(shard, minlength=len(self._shards))

    def prefetch(self, shard: int) -> None:
        """Have a shard at hand, where it lies elsewhere and there is room.

        Raises:
            UserError: it cannot be fetched.
        """

    def holding(self, shard: int) -> contextlib.AbstractContextManager[None]:
        """Within the block, a shard that lies elsewhere stays at hand."""
        return contextlib.nullcontext()

    def _number(self, index: int) -> int:
        i = operator.index(index)
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name}/{self.split} has samples 0..{len(self) - 1}, not {i}")
        return i

    def _read_bytes(self, shard: _Shard, start: int, length: int) -> bytes:
        try:
            try:
                return self._file(shard).read(start, length)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ESTALE):
                    raise
                self._file.cache_clear()  # too many open files, or a server that has forgotten them
                return self._file(shard).read(start, length)
        except FileNotFoundError as error:
            raise UserError(f"shard {shard.path} is missing; copy or make the shards again") from error
        except OSError as error:
            hint = "; raise the limit of open files (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
            raise UserError(f"cannot read shard {shard.path}: {error.strerror or error}{hint}") from error


def set_of(
    info: DatasetInfo, split: str, index: Index, *, shown: str, kind: type[ShardSet] = ShardSet, **settings: Any
) -> ShardSet:
    """A split of a set that has a dataset.json, as that describes it.

    Args:
        info: dataset.json.
        split: one of its splits.
        index: of the split.
        shown: what messages call the set's folder.
        kind, settings: of the set, and what else it is made with.

    Raises:
        UserError: an index that is not that of the split.
    """
    part = info.splits[split]
    if len(index) != part.count or index.shard_names != [shard.name for shard in part.shards]:
        raise UserError(stale(f"{shown}/{part.index}"))
    if index.classes > len(info.classes):
        raise UserError(
            f"{shown}/{DATASET_FILE} names {len(info.classes)} classes, but a sample of {split} has "
            f"class {index.classes - 1}; make the shards again with --force"
        )
    reference, sizes = info.splits.get("train", part), part.image_size
    return kind(
        split=split,
        classes=info.classes,
        mean=reference.mean,
        std=reference.std,
        image_size=sizes.min if sizes.min == sizes.max else None,
        fingerprint=part.fingerprint,
        index=index,
        **settings,
    )


def stale(path: str | Path) -> str:
    """The message about an index of other shards."""
    return f"index {path} belongs to other shards than {DATASET_FILE} names: delete it, then it is built anew"


class _Shard:
    """A shard as it was when the set was opened."""

    def __init__(self, path: str, checksum: Checksum):
        self.path, self.checksum = path, checksum
        self.sha256, self.state = checksum.sha256, checksum.state


class _Descriptor:
    """An open shard that closes itself once nobody reads from it: a cache may drop it while a thread uses it.

    Raises:
        UserError: it is no longer the file that it was.
    """

    def __init__(self, shard: _Shard):
        self.path = shard.path
        self.number = os.open(shard.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        state = FileState.of(os.fstat(self.number))
        if not state.same(shard.state):
            problem = other_size(shard.path, state.size, shard.state.size)
            if problem is None and descriptor_sha256(self.number) != shard.sha256:
                problem = f"shard {shard.path} was replaced by another while it was in use"
            if problem:
                raise UserError(f"{problem}; copy or make the shards again")
            shard.state = state

    def read(self, start: int, length: int) -> bytes:
        """Bytes start..start+length-1.

        Raises:
            OSError: they cannot be read.
            UserError: the file ends before.
        """
        return read_exactly(self.number, self.path, start, length)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def read_exactly(descriptor: int, path: str, start: int, length: int) -> bytes:
    """Bytes start..start+length-1 of an open shard.

    Raises:
        OSError: they cannot be read.
        UserError: the file ends before.
    """
    data = os.pread(descriptor, length, start)
    while len(data) < length:
        more = os.pread(descriptor, length - len(data), start + len(data))
        if not more:
            raise UserError(
                f"shard {path} is truncated: the index expects bytes up to {start + length}, "
                f"it ends at {start + len(data)}; copy or make the shards again"
            )
        data += more
    return data


def _open_files() -> int:
    try:
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError, ValueError):  # not on this system
        return OPEN_FILES
    # Readers, sockets and several splits share the rest.
    return OPEN_FILES if allowed < 0 else max(1, min(OPEN_FILES, allowed // 8))


def other_size(path: str | Path, size: int, expected: int) -> str | None:
    if size < expected:
        return f"shard {path} is truncated: {size} bytes of {expected}"
    return f"shard {path} has changed: {size} bytes instead of {expected}" if size > expected else None
