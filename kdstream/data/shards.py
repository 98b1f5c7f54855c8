"""Reading shards: one split of a data set folder, opened for access to any sample by its number."""

from __future__ import annotations

import errno
import hashlib
import json
import operator
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import UnidentifiedImageError
from rich.console import Console

from kdstream.atomic import write_atomic
from kdstream.bars import progress_bars, reading_progress
from kdstream.data.checksums import (
    Checksum,
    Checksums,
    FileState,
    Stopped,
    cached,
    descriptor_sha256,
    in_threads,
    state_of,
)
from kdstream.data.dataset_info import (
    DATASET_FILE,
    WORK_FOLDER,
    Channels,
    DatasetInfo,
    ShardInfo,
    Size,
    SplitInfo,
    load_dataset_info,
)
from kdstream.data.image_file import open_image, upright_size
from kdstream.data.image_stats import ImageStats
from kdstream.data.index import IMAGE_EXTENSIONS, Index, Scanned, ScannedShard, build_index, scan_shard
from kdstream.data.sealed_json import SEAL, seal_fits, sealed
from kdstream.errors import UserError
from kdstream.terminal import quoted

if TYPE_CHECKING:
    from kdstream.batch import Sample

SCAN = 2
"""Raised when other samples are found in the same foreign tars than before: their indices are then made anew."""
SPLIT_NAMES = ("train", "val", "valid", "validation", "test")
MEASURED_IMAGES = 10_000
"""So many images of a foreign set, evenly spread over its shards, give its mean and deviation."""
OPEN_FILES = 256
"""Shards that a split holds open per process, at most, and an eighth of what the system allows a process."""
MOST_STATS = 1 << 20
"""Bytes of the statistics of a foreign set, which take some thousands."""
ONE_READ = 1 << 16
"""Bytes between the members of a sample that are rather read than jumped over."""


class ShardSet:
    """One split of a data set: n samples, read by number. Made by :func:`open_shards`.

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
        self._index = index
        self._source = source
        self._shards = [_Shard(str(path / name), made) for name, made in zip(index.shard_names, checksums, strict=True)]
        self._file = lru_cache(_open_files())(_Descriptor)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

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
        largest = int(self.labels.max(initial=0))
        if largest >= count:
            raise UserError(f"{self.name}/{self.split} has a sample of class {largest}, so there are not {count}")
        self.classes = [str(number) for number in range(count)]

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return f"ShardSet({self.name}/{self.split}: {len(self)} samples, {self.num_classes} classes)"

    def __reduce__(self):
        return _reopen, (self._source, self.fingerprint)

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
        shard = self._shards[self._index.shard[i]]
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


class _Shard:
    """A shard as it was when the set was opened."""

    def __init__(self, path: str, checksum: Checksum):
        self.path, self.sha256, self.state = path, checksum.sha256, checksum.state


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
            problem = _other_size(shard.path, state.size, shard.state.size)
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
        data = os.pread(self.number, length, start)
        while len(data) < length:
            more = os.pread(self.number, length - len(data), start + len(data))
            if not more:
                raise UserError(
                    f"shard {self.path} is truncated: the index expects bytes up to {start + length}, "
                    f"it ends at {start + len(data)}; copy or make the shards again"
                )
            data += more
        return data

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _open_files() -> int:
    try:
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError, ValueError):  # not on this system
        return OPEN_FILES
    # Readers, sockets and several splits share the rest.
    return OPEN_FILES if allowed < 0 else max(1, min(OPEN_FILES, allowed // 8))


def _reopen(source: str, fingerprint: str) -> ShardSet:
    shards = open_shards(source)
    if shards.fingerprint != fingerprint:
        raise UserError(f"the shards at {source} have changed since they were opened: start again")
    return shards


def open_shards(path: str | os.PathLike[str]) -> ShardSet:
    """Open one split.

    Args:
        path: ``FOLDER/SPLIT`` of a data set that ``kdstream shards`` made (``shards/cifar10/train``); or a
            folder of other people's WebDataset tars; or ``FOLDER/SPLIT`` where the tars of a folder carry the
            split in their names (``imagenet-train-0000.tar``). Foreign tars need an image and a ``.cls`` member
            (class number) in every sample. They are indexed on first use; the index is stored beside them, or in
            the user's cache folder where that is read-only.

    Shards whose size or time differs from what is remembered of them are read once and compared with their checksums;
    that is remembered beside the index, or in the cache folder.

    Raises:
        UserError: no such folder or split, a conversion that has not finished, missing, truncated or changed shards, an
            index of other shards, tars that do not fit, anything but a local folder.
    """
    text = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/|pipe:", text):
        reason = "no command is ever run to read data" if text.startswith("pipe:") else "only local folders are read"
        raise UserError(f"cannot open {text!r}: {reason}; copy the shards to a folder and name that")
    target = Path(os.path.abspath(os.path.expanduser(text)))
    folder, split = target.parent, target.name
    if target.is_file():
        raise UserError(f"{text} is a file: name the folder that holds the shards")
    for place in (target, folder):
        if (place / WORK_FOLDER).is_dir() and not (place / DATASET_FILE).exists():
            raise UserError(f"the shards in {place} are half-made: run the same make_shards command again to finish")
    if (folder / DATASET_FILE).is_file():
        info = load_dataset_info(folder)
        if split not in info.splits and not _tars(target):
            raise UserError(f"{folder} has no split {split!r}: found {', '.join(info.splits)}")
        if split in info.splits:
            return _open_own(folder, split, info)
    if (target / DATASET_FILE).is_file():
        splits = load_dataset_info(target).splits
        raise UserError(
            f"{text} is a data set of several splits: name one, as in {Path(text) / next(iter(splits))}"
            if len(splits) > 1
            else f"name the split too: {Path(text) / next(iter(splits))}"
        )
    return _open_foreign(target, text)


def has_split(folder: Path, split: str) -> bool:
    """Whether a data set folder is meant to have this split, be its shards whole, damaged or gone.

    Raises:
        UserError: dataset.json is damaged.
    """
    if (folder / DATASET_FILE).is_file():
        return split in load_dataset_info(folder).splits or bool(_tars(folder / split))
    return (folder / split).is_dir() or bool(_tars(folder, split))


# ---- sets with a dataset.json


def _open_own(folder: Path, split: str, info: DatasetInfo) -> ShardSet:
    part = info.splits[split]
    checksums = _check_own(folder, split, part.shards)
    index = _own_index(folder, part)
    if len(index) != part.count or index.shard_names != [shard.name for shard in part.shards]:
        raise UserError(_stale(folder / part.index))
    if len(index) and int(index.label.max()) >= len(info.classes):
        raise UserError(
            f"{folder / DATASET_FILE} names {len(info.classes)} classes, but a sample of {split} has "
            f"class {int(index.label.max())}; make the shards again with --force"
        )
    reference = info.splits.get("train", part)
    sizes = part.image_size
    return ShardSet(
        name=folder.name,
        split=split,
        path=folder,
        classes=info.classes,
        mean=reference.mean,
        std=reference.std,
        image_size=sizes.min if sizes.min == sizes.max else None,
        fingerprint=part.fingerprint,
        index=index,
        checksums=checksums,
        source=str(folder / split),
        notes=[f"{DATASET_FILE} has been changed since it was made"] if info.changed else [],
    )


def _check_own(folder: Path, split: str, shards: Sequence[ShardInfo]) -> list[Checksum]:
    """That the shards are those of dataset.json: sizes always, contents where nothing is remembered of them."""
    for shard in shards:
        problem = _size_problem(folder / shard.name, shard.bytes)
        if problem:
            raise UserError(f"{problem}; copy or make the shards again")
    memory = Checksums(folder, _state_file(split))
    found = _checksums(memory, [shard.name for shard in shards])
    damaged = [shard for shard, made in zip(shards, found, strict=True) if made.sha256 != shard.sha256]
    if damaged:
        raise _other_checksums([folder / shard.name for shard in damaged], len(shards))
    return found


def _other_checksums(paths: Sequence[Path], total: int) -> UserError:
    more = f" (and {len(paths) - 1} more of {total} shards)" if len(paths) > 1 else ""
    return UserError(f"shard {paths[0]} is damaged: its checksum differs{more}; copy or make the shards again")


def record_checksums(folder: Path, info: DatasetInfo, since: int) -> None:
    """Spare a data set that was just made its first check: remember the checksums of the shards that were written after
    ``since`` (ns since the epoch), in the user's cache folder. Older ones are read when the set is opened."""
    for split, part in info.splits.items():
        memory = Checksums(folder, _state_file(split))
        for shard in part.shards:
            if state_of(folder / shard.name).mtime >= since:
                memory.remember(shard.name, shard.sha256)
        memory.save([cached(folder, _state_file(split))])


def _state_file(split: str) -> str:
    return f"{split}.state"


def _checksums(memory: Checksums, names: Sequence[str]) -> list[Checksum]:
    """Checksums of these shards, by reading those of which none is remembered."""
    if not all(memory.known(name) for name in names):
        with memory.alone():
            missing = [name for name in names if memory.known(name) is None]
            total = sum(state_of(memory.folder / name).size for name in missing)
            with reading_progress(total, f"checking {memory.folder.name}") as advance:
                for _ in in_threads(lambda name, stop: memory.read(name, advance, stop), missing):
                    memory.save_now_and_then()
    return [memory.known(name) or memory.read(name) for name in names]


def _size_problem(path: Path, expected: int) -> str | None:
    try:
        return _other_size(path, state_of(path).size, expected)
    except UserError as error:
        return str(error)


def _other_size(path: str | Path, size: int, expected: int) -> str | None:
    if size < expected:
        return f"shard {path} is truncated: {size} bytes of {expected}"
    return f"shard {path} has changed: {size} bytes instead of {expected}" if size > expected else None


def _own_index(folder: Path, part: SplitInfo) -> Index:
    for path in (folder / part.index, cached(folder, part.index)):
        if path.is_file():
            index = Index.load(path, sum(shard.bytes for shard in part.shards))
            if index.tag != part.fingerprint:
                raise UserError(_stale(path))
            return index
    with reading_progress(sum(shard.bytes for shard in part.shards), f"indexing {folder.name}") as advance:
        paths = [folder / shard.name for shard in part.shards]
        index = build_index(paths, part.fingerprint, lambda shard: advance(shard.bytes))
    _store(part.index, index.save, (folder, cached(folder, part.index).parent))
    return index


def _stale(path: Path) -> str:
    return f"index {path} belongs to other shards than {DATASET_FILE} names: delete it, then it is built anew"


# ---- foreign sets


def _tars(folder: Path, split: str | None = None) -> list[Path]:
    """The tar files of a folder, sorted; of those with ``split`` as a word of their name when it is given."""
    return _files(folder, split, r".*\.tar")


def _files(folder: Path, split: str | None, pattern: str) -> list[Path]:
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if re.fullmatch(rf"(?!\.){pattern}", path.name, re.I | re.S))
    return found if split is None else [path for path in found if split in _words(path)]


def _words(path: Path) -> list[str]:
    return re.split(r"[-_.]", path.name)


def _splits_in_names(folder: Path) -> list[str]:
    words = {word for path in _tars(folder) for word in _words(path)}
    return [name for name in SPLIT_NAMES if name in words]


@dataclass(frozen=True)
class _Place:
    """Where the tars of a foreign split lie: all of a folder, or those with ``split`` in their names."""

    folder: Path
    split: str | None
    name: str
    tars: list[Path]
    train: tuple[Path, str | None] | None

    @property
    def compressed(self) -> list[Path]:
        """Those beside them that nobody reads, as long as they are packed."""
        found = _files(self.folder, self.split, r".*\.(tar\.(gz|bz2|xz|zst|lz4|lzma)|tgz|tbz2?|txz|tzst)")
        return [path for path in found if not path.with_suffix("").is_file()]


def _place(target: Path, text: str) -> _Place:
    if tars := _tars(target):
        named = _splits_in_names(target)
        if len(named) > 1:
            raise UserError(f"{text} holds several splits ({', '.join(named)}): name one, as in {text}/{named[0]}")
        known = target.name in SPLIT_NAMES
        train = (target.parent / "train", None) if known and target.name != "train" else None
        return _Place(target, None, target.parent.name if known else target.name, tars, train)
    if tars := _tars(target.parent, target.name):
        train = (target.parent, "train") if target.name != "train" else None
        return _Place(target.parent, target.name, target.parent.name, tars, train)
    raise UserError(_not_found(target, text))


def _open_foreign(target: Path, text: str) -> ShardSet:
    place = _place(target, text)
    found = reference = _foreign_index(place.folder, place.split, place.tars)
    if not len(found.index):
        told = f"; {'; '.join(found.notes)}" if found.notes else ""
        raise UserError(f"the tars in {place.folder} hold no samples{told}")
    classes = int(found.index.label.max()) + 1
    if place.train is not None and (train_tars := _tars(*place.train)):
        reference = _foreign_index(*place.train, train_tars)
        classes = max(classes, int(reference.index.label.max(initial=-1)) + 1)
    mean, std = reference.stats.mean_std()
    packed = place.compressed
    beside = [f"compressed tars left out: {len(packed):,}, such as {packed[0].name!r}; unpack them"] if packed else []
    return ShardSet(
        name=place.name,
        split=place.split or (target.name if target.name in SPLIT_NAMES else "all"),
        path=place.folder,
        classes=[str(number) for number in range(classes)],
        mean=mean,
        std=std,
        image_size=found.stats.image_size,
        fingerprint=_fingerprint(found.index, found.checksums),
        index=found.index,
        checksums=found.checksums,
        source=str(target),
        notes=found.notes + beside,
    )


def _not_found(target: Path, text: str) -> str:
    kind = target.parent.name if target.parent.name in ("digits", "cifar10", "cifar100") else "SOURCE"
    make = f"make them with `kdstream shards {kind} {os.path.dirname(text.rstrip('/')) or '.'}`"
    if target.is_dir():
        gz = any(path.name.endswith((".tar.gz", ".tgz")) for path in target.iterdir())
        tail = "unpack its compressed tars with gunzip" if gz else make
        return f"{text} holds no .tar files: {tail}"
    found = _splits_in_names(target.parent) or [path.name for path in _siblings(target) if _tars(path)]
    return f"no shards at {text}: {make}" + (f"; found splits: {', '.join(found)}" if found else "")


def _siblings(target: Path) -> list[Path]:
    return sorted(path for path in target.parent.iterdir() if path.is_dir()) if target.parent.is_dir() else []


@dataclass(frozen=True)
class _Foreign:
    """What is known of tars without dataset.json; ``checksums`` are those of the shards, in order."""

    index: Index
    stats: ImageStats
    notes: list[str]
    checksums: list[Checksum]


def _foreign_index(folder: Path, split: str | None, tars: list[Path]) -> _Foreign:
    """As stored, or made now and stored. What is stored counts as long as the bytes of the tars are the same."""
    file, names = _foreign_file(split, "index.npz"), [path.name for path in tars]
    places = (folder / file, cached(folder, file))
    memory = Checksums(folder, _foreign_file(split, "state"))
    if any(path.is_file() for path in places):
        # Shards that were touched or copied are read once; then it is known whether the index is still theirs.
        found = _stored(places, names, _checksums(memory, names))
        if found is not None:
            return found
    with memory.alone():
        known = [made for name in names if (made := memory.known(name))]
        if len(known) == len(names) and (found := _stored(places, names, known)):
            return found  # another process has made it meanwhile
        made = _scan_foreign(folder, tars, memory)

        def save(path: Path) -> None:
            stored = {"tag": made.index.tag, "notes": made.notes, **made.stats.to_json()}
            write_atomic(path.with_suffix(".json"), json.dumps(sealed(stored)).encode())
            made.index.save(path)

        _store(file, save, (folder, places[1].parent))
    for note in made.notes:
        Console(stderr=True).print(f"{folder.name}: {note}", soft_wrap=True, highlight=False, markup=False)
    return made


def _foreign_file(split: str | None, kind: str) -> str:
    return f"kdstream-{split}.{kind}" if split else f"kdstream.{kind}"


def _scan_foreign(folder: Path, tars: Sequence[Path], memory: Checksums) -> _Foreign:
    checksums, stats = list[Checksum](), ImageStats()
    told, examples = Counter[str](), dict[str, str]()
    per_shard = -(-MEASURED_IMAGES // len(tars))
    with reading_progress(sum(state_of(path).size for path in tars), f"indexing {folder.name}") as advance:

        def scan(path: Path, stop: threading.Event) -> tuple[Checksum, ScannedShard, ImageStats]:
            made = memory.known(path.name)
            if made is None:
                made = memory.read(path.name, advance, stop)  # front to back: what follows finds it in memory
            else:
                advance(made.state.size)
            shard = scan_shard(path)
            measured = _measure(path, shard.samples, per_shard)
            if state_of(path) != made.state:
                raise UserError(f"shard {path} is being written to: try again when that has ended")
            return made, shard, measured

        def scans() -> Iterator[ScannedShard]:
            for made, shard, measured in in_threads(scan, tars):
                checksums.append(made)
                stats.merge(measured)
                told.update(shard.told)
                for kind, example in shard.examples.items():
                    examples.setdefault(kind, example)
                memory.save_now_and_then()
                yield shard

        index = build_index(tars, "", scans=scans())
    index.tag = _tag(index.shard_names, checksums)
    notes = [f"{kind}: {count:,}, such as {quoted(examples[kind])}" for kind, count in told.items()]
    return _Foreign(index, stats, notes, checksums)


def _tag(names: Sequence[str], checksums: Sequence[Checksum]) -> str:
    """What an index of foreign tars belongs to."""
    files = [[name, made.sha256] for name, made in zip(names, checksums, strict=True)]
    return hashlib.sha256(json.dumps([SCAN, files]).encode()).hexdigest()


def _stored(places: Iterable[Path], names: Sequence[str], checksums: list[Checksum]) -> _Foreign | None:
    """The stored index of these very shards, if any; one that is damaged or of another version is made anew."""
    tag, total = _tag(names, checksums), sum(made.state.size for made in checksums)
    for path in places:
        try:
            if path.with_suffix(".json").stat().st_size > MOST_STATS:
                continue
            stored = json.loads(path.with_suffix(".json").read_bytes())
            if not seal_fits(stored) or stored["tag"] != tag:
                continue
            index, stats = Index.load(path, total), ImageStats.from_json(stored)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue
        if index.tag == tag and index.shard_names == list(names):
            return _Foreign(index, stats, [str(note) for note in stored["notes"]], checksums)
    return None


def _fingerprint(index: Index, checksums: Sequence[Checksum]) -> str:
    """Of the bytes of the shards and of what is read from them; not of their names."""
    digest = hashlib.sha256(json.dumps([made.sha256 for made in checksums]).encode())
    for values in (index.shard, index.label, index.first, index.offset, index.size, index.key_text):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:32]


def _measure(path: Path, samples: list[Scanned], decoded: int) -> ImageStats:
    """Sizes of all images of a shard, pixels of ``decoded`` of them, evenly spread. Unreadable ones do not count:
    who decodes a sample later reports it."""
    stats = ImageStats()
    step = max(1, -(-len(samples) // decoded))
    with open(path, "rb", buffering=0) as file:
        for i, (_, _, members) in enumerate(samples):
            offset, size = next((o, s) for extension, o, s in members if extension in IMAGE_EXTENSIONS)
            if i % step == 0:
                try:
                    stats.add(open_image(os.pread(file.fileno(), size, offset)))
                except Exception:
                    continue
            else:
                for head in (4096, 65536, size):  # the size stands near the beginning, behind the metadata if any
                    try:
                        with open_image(os.pread(file.fileno(), min(head, size), offset)) as image:
                            stats.add_size(*upright_size(image))
                        break
                    except Exception:
                        continue
    return stats


# ---- where indices are stored


def _store(file: str, save: Callable[[Path], None], folders: Sequence[Path]) -> Path:
    """Save ``file`` in the first of ``folders`` that can be written; the later ones are created when needed.

    Raises:
        UserError: none can be written.
    """
    reasons = []
    for i, folder in enumerate(folders):
        try:
            if i > 0:
                folder.mkdir(parents=True, exist_ok=True)
            save(folder / file)
            return folder / file
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
    raise UserError(f"cannot store the index {file}: {'; '.join(reasons)}")


# ---- checking


@dataclass(frozen=True)
class Verified:
    """What :func:`verify` read and found in order; ``decoded`` images were decoded too."""

    splits: int
    shards: int
    samples: int
    bytes: int
    decoded: int


def verify(path: str | os.PathLike[str], decode: bool = False, console: Console | None = None) -> Verified:
    """Read every byte of a data set: its checksums, and that its indices point where the tars say.

    Of tars without dataset.json nobody knows the right checksums: their bytes are compared with those that the index
    was made from, and every image is decoded.

    Args:
        path: the data set folder (all its splits), or one split of foreign tars.
        decode: decode every image also where checksums tell that it is what it was.
        console: where progress is shown; None: nowhere.

    Raises:
        UserError: nothing that can be verified, or damaged; names the damaged shards or images.
    """
    folder = Path(os.path.abspath(os.path.expanduser(os.fspath(path))))
    if (folder / WORK_FOLDER).is_dir() and not (folder / DATASET_FILE).is_file():
        raise UserError(f"the shards in {path} are half-made: run the same make_shards command again to finish")
    if (folder / DATASET_FILE).is_file():
        info = load_dataset_info(folder)
        if info.changed:
            raise UserError(
                f"{folder / DATASET_FILE} has been changed since it was made: copy it again, or if it was you, delete "
                f"its line {SEAL!r}"
            )
        for part in info.splits.values():
            for shard in part.shards:
                if problem := _size_problem(folder / shard.name, shard.bytes):
                    raise UserError(f"{problem}; copy or make the shards again")
        tars = {
            split: (folder / split, [folder / shard.name for shard in part.shards])
            for split, part in info.splits.items()
        }
        expected = {folder / shard.name: shard.sha256 for part in info.splits.values() for shard in part.shards}
        memories = {split: Checksums(folder, _state_file(split)) for split in tars}
    else:
        tars, memories, expected = {}, {}, {}
        for target in _foreign_splits(folder, os.fspath(path)):
            place = _place(target, str(target))
            tars[str(target)] = (target, place.tars)
            memory = memories[str(target)] = Checksums(place.folder, _foreign_file(place.split, "state"))
            expected |= {tar: known.sha256 for tar in place.tars if (known := memory.known(tar.name))}
        decode = True
    work = [(memories[split], one) for split, (_, paths) in tars.items() for one in paths]
    total = sum(state_of(one).size for _, one in work)
    with reading_progress(total, f"verifying {folder.name}", console or Console(quiet=True)) as advance:

        def differs(task: tuple[Checksums, Path], stop: threading.Event) -> bool:
            memory, one = task
            made = memory.read(one.name, advance, stop)
            return made.sha256 != expected.get(one, made.sha256)

        damaged = [one for (_, one), wrong in zip(work, in_threads(differs, work), strict=True) if wrong]
    if damaged:
        raise _other_checksums(damaged, len(work))
    samples = decoded = 0
    for split, (target, paths) in tars.items():
        memories[split].save()
        shards = open_shards(target)
        if not shards._index.same_as(build_index(paths, "")):
            raise UserError(_stale(shards.path))
        samples += len(shards)
        if decode:
            decoded += _decode_all(shards, console or Console(quiet=True))
    return Verified(len(tars), len(work), samples, total, decoded)


def _foreign_splits(folder: Path, text: str) -> list[Path]:
    """What :func:`open_shards` opens of a folder of foreign tars."""
    if not _tars(folder) and _tars(folder.parent, folder.name):
        return [folder]
    found: list[Path] = []
    for place in [folder] if _tars(folder) else _siblings(folder / "split"):
        named = _splits_in_names(place)
        found += [place / name for name in named] if len(named) > 1 else [place] if _tars(place) else []
    if not found:
        raise UserError(f"nothing to verify at {text}: neither {DATASET_FILE} nor tars")
    return found


def _decode_all(shards: ShardSet, console: Console) -> int:
    """Decode every image of a split; returns how many there are.

    Raises:
        UserError: some cannot be; names the first.
    """
    with progress_bars(console) as progress:
        bar = progress.add_task(f"decoding {shards.split}", total=len(shards))

        def problem_of(number: int, stop: threading.Event) -> str | None:
            if stop.is_set():
                raise Stopped
            sample = shards.read(number)
            progress.advance(bar)
            for extension in IMAGE_EXTENSIONS:
                if extension in sample:
                    try:
                        with open_image(sample[extension]) as image:
                            image.load()
                    except Exception as error:  # Pillow raises many kinds for damaged files
                        reason = "no image" if isinstance(error, UnidentifiedImageError) else error
                        return f"sample {sample['__key__']!r} of {sample['__url__']} (.{extension}: {reason})"
            return None

        problems = [problem for problem in in_threads(problem_of, range(len(shards))) if problem]
    if problems:
        raise UserError(
            f"{len(problems):,} of the {len(shards):,} images of {shards.path} ({shards.split}) cannot be decoded, the "
            f"first in {problems[0]}; mend or remove them"
        )
    return len(shards)
