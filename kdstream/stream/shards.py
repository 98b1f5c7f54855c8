"""Reading shards: one split of a data set folder, opened for access to any sample by its number."""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdstream.atomic import write_atomic
from kdstream.errors import UserError
from kdstream.stream.dataset_info import (
    DATASET_FILE,
    WORK_FOLDER,
    Channels,
    DatasetInfo,
    ShardInfo,
    Size,
    SplitInfo,
    load_dataset_info,
)
from kdstream.stream.image_file import open_image
from kdstream.stream.image_stats import ImageStats
from kdstream.stream.index import IMAGE_EXTENSIONS, Index, Scanned, build_index

if TYPE_CHECKING:
    from kdstream.types import Sample

SPLIT_NAMES = ("train", "val", "valid", "validation", "test")
MEASURED_IMAGES = 10_000
"""So many images of a foreign set, evenly spread over its shards, give its mean and deviation."""
OPEN_FILES = 256
"""Shards held open per process; the usual limit for all files of a process is 1024."""


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
        fingerprint: hex hash of the split's contents as recorded.
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
        source: str,
    ):
        self.name, self.split, self.path = name, split, path
        self.classes = list(classes)
        self.mean, self.std = mean, std
        self.image_size = image_size
        self.fingerprint = fingerprint
        self.labels = index.label
        self.labels.flags.writeable = False
        self._index = index
        self._source = source
        self._urls = [str(path / name) for name in index.shard_names]
        self._file = lru_cache(OPEN_FILES)(_Descriptor)

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
        url = self._urls[self._index.shard[i]]
        members = self._index.members(i)
        start = members[0][1]
        length = members[-1][1] + members[-1][2] - start
        data = self._read_bytes(url, start, length)
        sample: Sample = {"__key__": self._index.key(i), "__url__": url}
        for extension, offset, size in members:
            sample[extension] = data[offset - start : offset - start + size]
        sample["index"] = i
        return sample

    def _number(self, index: int) -> int:
        i = operator.index(index)
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name}/{self.split} has samples 0..{len(self) - 1}, not {i}")
        return i

    def _read_bytes(self, url: str, start: int, length: int) -> bytes:
        try:
            file = self._file(url)
            data = os.pread(file.number, length, start)
            while len(data) < length:
                more = os.pread(file.number, length - len(data), start + len(data))
                if not more:
                    raise UserError(
                        f"shard {url} is truncated: the index expects bytes up to {start + length}, "
                        f"it ends at {start + len(data)}; copy or make the shards again"
                    )
                data += more
        except FileNotFoundError as error:
            raise UserError(f"shard {url} is missing; copy or make the shards again") from error
        except OSError as error:
            raise UserError(f"cannot read shard {url}: {error.strerror or error}") from error
        return data


class _Descriptor:
    """An open file that closes itself once nobody reads from it: a cache may drop it while a thread uses it."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def _reopen(source: str, fingerprint: str) -> ShardSet:
    shards = open_shards(source)
    if shards.fingerprint != fingerprint:
        raise UserError(f"the shards at {source} have changed since they were opened: start again")
    return shards


def open_shards(path: str | os.PathLike[str]) -> ShardSet:
    """Open one split.

    Args:
        path: ``FOLDER/SPLIT`` of a data set that ``tools/make_shards.py`` made (``shards/cifar10/train``); or a
            folder of other people's WebDataset tars; or ``FOLDER/SPLIT`` where the tars of a folder carry the
            split in their names (``imagenet-train-0000.tar``). Foreign tars need an image and a ``.cls`` member
            (class number) in every sample. They are indexed on first use; the index is stored beside them, or in
            the user's cache folder where that is read-only.

    Raises:
        UserError: no such folder or split, a conversion that has not finished, missing or truncated shards, an
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


# ---- sets with a dataset.json


def _open_own(folder: Path, split: str, info: DatasetInfo) -> ShardSet:
    part = info.splits[split]
    _check_files(folder, part.shards)
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
        source=str(folder / split),
    )


def _check_files(folder: Path, shards: Sequence[ShardInfo]) -> None:
    for shard in shards:
        problem = _size_problem(folder / shard.name, shard.bytes)
        if problem:
            raise UserError(f"{problem}; copy or make the shards again")


def _size_problem(path: Path, expected: int) -> str | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"shard {path} is missing"
    except OSError as error:
        return f"cannot read shard {path}: {error.strerror or error}"
    if size < expected:
        return f"shard {path} is truncated: {size} bytes of {expected}"
    return f"shard {path} has changed: {size} bytes instead of {expected}" if size > expected else None


def _own_index(folder: Path, part: SplitInfo) -> Index:
    for path in (folder / part.index, _cached(folder, part.index)):
        if path.is_file():
            index = Index.load(path)
            if index.tag != part.fingerprint:
                raise UserError(_stale(path))
            return index
    with _scan_progress(len(part.shards), folder) as advance:
        paths = [folder / shard.name for shard in part.shards]
        index = build_index(paths, part.fingerprint, lambda path, samples: advance())
    _store(part.index, index.save, (folder, _cached(folder, part.index).parent))
    return index


def _stale(path: Path) -> str:
    return f"index {path} belongs to other shards than {DATASET_FILE} names: delete it, then it is built anew"


# ---- foreign sets


def _tars(folder: Path, split: str | None = None) -> list[Path]:
    """The tar files of a folder, sorted; of those with ``split`` as a word of their name when it is given."""
    if not folder.is_dir():
        return []
    tars = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and not path.name.startswith("."))
    return tars if split is None else [path for path in tars if split in _words(path)]


def _words(path: Path) -> list[str]:
    return re.split(r"[-_.]", path.name)


def _splits_in_names(folder: Path) -> list[str]:
    words = {word for path in _tars(folder) for word in _words(path)}
    return [name for name in SPLIT_NAMES if name in words]


def _open_foreign(target: Path, text: str) -> ShardSet:
    if tars := _tars(target):
        named = _splits_in_names(target)
        if len(named) > 1:
            raise UserError(f"{text} holds several splits ({', '.join(named)}): name one, as in {text}/{named[0]}")
        known = target.name in SPLIT_NAMES
        folder, split, name = target, None, target.parent.name if known else target.name
        train = (target.parent / "train", None) if known and target.name != "train" else None
    elif tars := _tars(target.parent, target.name):
        folder, split, name = target.parent, target.name, target.parent.name
        train = (folder, "train") if split != "train" else None
    else:
        raise UserError(_not_found(target, text))
    index, stats, fingerprint = _foreign_index(folder, split, tars)
    if not len(index):
        raise UserError(f"the tars in {folder} hold no samples")
    classes = int(index.label.max()) + 1
    reference = stats
    if train is not None and (train_tars := _tars(*train)):
        train_index, reference, _ = _foreign_index(*train, train_tars)
        classes = max(classes, int(train_index.label.max(initial=-1)) + 1)
    mean, std = reference.mean_std()
    return ShardSet(
        name=name,
        split=split or (target.name if target.name in SPLIT_NAMES else "all"),
        path=folder,
        classes=[str(number) for number in range(classes)],
        mean=mean,
        std=std,
        image_size=stats.image_size,
        fingerprint=fingerprint,
        index=index,
        source=str(target),
    )


def _not_found(target: Path, text: str) -> str:
    kind = target.parent.name if target.parent.name in ("digits", "cifar10", "cifar100") else "SOURCE"
    make = f"make them with `python tools/make_shards.py {kind} {os.path.dirname(text.rstrip('/')) or '.'}`"
    if target.is_dir():
        gz = any(path.name.endswith((".tar.gz", ".tgz")) for path in target.iterdir())
        tail = "unpack its compressed tars with gunzip" if gz else make
        return f"{text} holds no .tar files: {tail}"
    found = _splits_in_names(target.parent) or [path.name for path in _siblings(target) if _tars(path)]
    return f"no shards at {text}: {make}" + (f"; found splits: {', '.join(found)}" if found else "")


def _siblings(target: Path) -> list[Path]:
    return sorted(path for path in target.parent.iterdir() if path.is_dir()) if target.parent.is_dir() else []


def _foreign_index(folder: Path, split: str | None, tars: list[Path]) -> tuple[Index, ImageStats, str]:
    """Index, statistics and fingerprint of tars without dataset.json: as stored, or made now and stored.

    What is stored counts as long as names, sizes and times of the tars are those it was made from.
    """
    try:
        states = [(path.name, (state := path.stat()).st_size, state.st_mtime_ns) for path in tars]
    except OSError as error:
        raise UserError(f"cannot read shard {error.filename}: {error.strerror or error}") from error
    tag = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    file = f"kdstream-{split}.index.npz" if split else "kdstream.index.npz"
    for path in (folder / file, _cached(folder, file)):
        stats_path = path.with_suffix(".json")
        if path.is_file() and stats_path.is_file():
            index, stored = Index.load(path), _load_stats(stats_path)
            if index.tag == tag == stored.get("tag"):
                return index, ImageStats.from_json(stored), _fingerprint(index)
    stats = ImageStats()
    per_shard = -(-MEASURED_IMAGES // len(tars))
    with _scan_progress(len(tars), folder) as advance:

        def measure(path: Path, samples: list[Scanned]) -> None:
            stats.merge(_measure(path, samples, per_shard))
            advance()

        index = build_index(tars, tag, measure)

    def save(path: Path) -> None:
        write_atomic(path.with_suffix(".json"), json.dumps({"tag": tag, **stats.to_json()}).encode())
        index.save(path)

    _store(file, save, (folder, _cached(folder, file).parent))
    return index, stats, _fingerprint(index)


def _load_stats(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_bytes())
        ImageStats.from_json(stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, then it is made anew from the shards") from error
    return stored


def _fingerprint(index: Index) -> str:
    digest = hashlib.sha256(json.dumps([index.shard_names, index.shard_bytes.tolist()]).encode())
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
                            stats.add_size(image.height, image.width)
                        break
                    except Exception:
                        continue
    return stats


# ---- where indices are stored


def _cached(folder: Path, file: str) -> Path:
    """The place of ``folder/file`` in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "kdstream" / "index" / hashlib.sha256(str(folder).encode()).hexdigest()[:16] / file


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


@contextmanager
def _scan_progress(total: int, folder: Path) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr over ``total`` shards that shows only when the work takes more than a second."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    bar = Progress(
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(f"indexing {folder.name}", total=total)
    begin, started = time.monotonic(), False

    def advance() -> None:
        nonlocal started
        bar.advance(task)
        if not started and time.monotonic() - begin > 1:
            bar.start()
            started = True

    try:
        yield advance
    finally:
        if started:
            bar.stop()


# ---- checking


@dataclass(frozen=True)
class Verified:
    """What :func:`verify` read and found in order."""

    splits: int
    shards: int
    samples: int
    bytes: int


def verify(path: str | os.PathLike[str], on_shard: Callable[[ShardInfo], None] = lambda shard: None) -> Verified:
    """Read every byte of a data set: checksums of its shards, and that its indices point where the tars say.

    Args:
        path: the data set folder (all its splits).
        on_shard: told after each shard, possibly from another thread.

    Raises:
        UserError: not a finished data set of ``tools/make_shards.py``, or damaged; names the damaged shards.
    """
    folder = Path(os.path.abspath(os.path.expanduser(os.fspath(path))))
    if not (folder / DATASET_FILE).is_file():
        half = (folder / WORK_FOLDER).is_dir()
        raise UserError(
            f"the shards in {path} are half-made: run the same make_shards command again to finish"
            if half
            else f"nothing to verify at {path}: no {DATASET_FILE}, hence no checksums to compare with"
        )
    info = load_dataset_info(folder)
    shards = [shard for part in info.splits.values() for shard in part.shards]

    def check(shard: ShardInfo) -> str | None:
        problem = _size_problem(folder / shard.name, shard.bytes)
        if problem is None and file_sha256(folder / shard.name) != shard.sha256:
            problem = f"shard {folder / shard.name} is damaged: its checksum differs"
        on_shard(shard)
        return problem

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        problems = [problem for problem in pool.map(check, shards) if problem]
    if problems:
        more = f" (and {len(problems) - 1} more of {len(shards)} shards)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; copy or make the shards again")
    for split, part in info.splits.items():
        index = _open_own(folder, split, info)._index
        if not index.same_as(build_index([folder / shard.name for shard in part.shards], part.fingerprint)):
            raise UserError(_stale(folder / part.index))
    return Verified(
        len(info.splits), len(shards), sum(p.count for p in info.splits.values()), sum(s.bytes for s in shards)
    )


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
