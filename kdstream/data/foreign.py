"""Shards that somebody else made: tars without dataset.json, indexed and measured when they are first opened."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from kdstream.atomic import write_atomic
from kdstream.bars import reading_progress
from kdstream.data.checksums import (
    Checksum,
    Checksums,
    cached,
    in_threads,
    state_of,
)
from kdstream.data.image_file import open_image, upright_size
from kdstream.data.image_stats import ImageStats
from kdstream.data.index import IMAGE_EXTENSIONS, Index, Scanned, ScannedShard, build_index, scan_shard
from kdstream.data.kept import checksums_of, store
from kdstream.data.sealed_json import seal_fits, sealed
from kdstream.data.shard_set import ShardSet
from kdstream.errors import UserError
from kdstream.terminal import quoted

if TYPE_CHECKING:
    pass


SCAN = 2
"""Raised when other samples are found in the same foreign tars than before: their indices are then made anew."""
SPLIT_NAMES = ("train", "val", "valid", "validation", "test")
MEASURED_IMAGES = 10_000
"""So many images of a foreign set, evenly spread over its shards, give its mean and deviation."""
MOST_STATS = 1 << 20
"""Bytes of the statistics of a foreign set, which take some thousands."""


def tars_of(folder: Path, split: str | None = None) -> list[Path]:
    """The tar files of a folder, sorted; of those with ``split`` as a word of their name when it is given."""
    return _files(folder, split, r".*\.tar")


def _files(folder: Path, split: str | None, pattern: str) -> list[Path]:
    if not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if re.fullmatch(rf"(?!\.){pattern}", path.name, re.I | re.S))
    return found if split is None else [path for path in found if split in _words(path)]


def _words(path: Path) -> list[str]:
    return re.split(r"[-_.]", path.name)


def splits_in_names(folder: Path) -> list[str]:
    """The splits that the tars of a folder carry in their names."""
    words = {word for path in tars_of(folder) for word in _words(path)}
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


def place_of(target: Path, text: str) -> _Place:
    """Where the tars of a split lie; ``text`` is what the user called it.

    Raises:
        UserError: nowhere, or several splits in one folder.
    """
    if tars := tars_of(target):
        named = splits_in_names(target)
        if len(named) > 1:
            raise UserError(f"{text} holds several splits ({', '.join(named)}): name one, as in {text}/{named[0]}")
        known = target.name in SPLIT_NAMES
        train: tuple[Path, str | None] | None = (
            (target.parent / "train", None) if known and target.name != "train" else None
        )
        return _Place(target, None, target.parent.name if known else target.name, tars, train)
    if tars := tars_of(target.parent, target.name):
        train = (target.parent, "train") if target.name != "train" else None
        return _Place(target.parent, target.name, target.parent.name, tars, train)
    raise UserError(_not_found(target, text))


def open_foreign(target: Path, text: str, reopen: Callable[[str, str], ShardSet]) -> ShardSet:
    """Open other people's tars: all of a folder, or those with the split in their names.

    Args:
        target: the folder, or a folder that is none with the split for a name.
        text: as the user called it.
        reopen: what a process does that unpickles the set, see :class:`ShardSet`.

    Raises:
        UserError: no tars, tars that do not fit, or that hold no samples.
    """
    place = place_of(target, text)
    found = reference = _foreign_index(place.folder, place.split, place.tars)
    if not len(found.index):
        told = f"; {'; '.join(found.notes)}" if found.notes else ""
        raise UserError(f"the tars in {place.folder} hold no samples{told}")
    classes = found.index.classes
    if place.train is not None and (train_tars := tars_of(*place.train)):
        reference = _foreign_index(*place.train, train_tars)
        classes = max(classes, reference.index.classes)
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
        fingerprint=found.fingerprint,
        index=found.index,
        checksums=found.checksums,
        source=str(target),
        reopen=reopen,
        notes=found.notes + beside,
    )


def _not_found(target: Path, text: str) -> str:
    kind = target.parent.name if target.parent.name in ("digits", "cifar10", "cifar100") else "SOURCE"
    make = f"make them with `kdstream shards {kind} {os.path.dirname(text.rstrip('/')) or '.'}`"
    if target.is_dir():
        gz = any(path.name.endswith((".tar.gz", ".tgz")) for path in target.iterdir())
        tail = "unpack its compressed tars with gunzip" if gz else make
        return f"{text} holds no .tar files: {tail}"
    if not os.path.isabs(text):
        make += f", or start in another folder than {os.getcwd()}"
    found = splits_in_names(target.parent) or [path.name for path in siblings(target) if tars_of(path)]
    return f"no shards at {text}: {make}" + (f"; found splits: {', '.join(found)}" if found else "")


def siblings(target: Path) -> list[Path]:
    """The folders beside a folder."""
    return sorted(path for path in target.parent.iterdir() if path.is_dir()) if target.parent.is_dir() else []


def foreign_splits(folder: Path, text: str) -> list[Path]:
    """What :func:`~kdstream.data.shards.open_shards` opens of a folder of foreign tars: a place a split.

    Raises:
        UserError: there are no tars.
    """
    if not tars_of(folder) and tars_of(folder.parent, folder.name):
        return [folder]
    found: list[Path] = []
    for place in [folder] if tars_of(folder) else siblings(folder / "split"):
        named = splits_in_names(place)
        found += [place / name for name in named] if len(named) > 1 else [place] if tars_of(place) else []
    if not found:
        raise UserError(f"no shards at {text}: neither dataset.json nor tars")
    return found


@dataclass(frozen=True)
class _Foreign:
    """What is known of tars without dataset.json; ``checksums`` are those of the shards, in order."""

    index: Index
    stats: ImageStats
    notes: list[str]
    checksums: list[Checksum]
    fingerprint: str


def _foreign_index(folder: Path, split: str | None, tars: list[Path]) -> _Foreign:
    """As stored, or made now and stored. What is stored counts as long as the bytes of the tars are the same."""
    file, names = foreign_file(split, "index.npz"), [path.name for path in tars]
    places = (folder / file, cached(folder, file))
    memory = Checksums(folder, foreign_file(split, "state"))
    if any(path.is_file() for path in places):
        # Shards that were touched or copied are read once; then it is known whether the index is still theirs.
        found = _stored(places, names, checksums_of(memory, names))
        if found is not None:
            return found
    with memory.alone():
        known = [checksum for name in names if (checksum := memory.known(name))]
        if len(known) == len(names) and (found := _stored(places, names, known)):
            return found  # another process has made it meanwhile
        made = _scan_foreign(folder, tars, memory)

        def save(path: Path) -> None:
            stored = {"tag": made.index.tag, "notes": made.notes, **made.stats.to_json()}
            stored["fingerprint"] = made.fingerprint  # which takes long to compute where there are very many samples
            write_atomic(path.with_suffix(".json"), json.dumps(sealed(stored)).encode())
            made.index.save(path)

        store(file, save, (folder, places[1].parent))
    for note in made.notes:
        Console(stderr=True).print(f"{folder.name}: {note}", soft_wrap=True, highlight=False, markup=False)
    return made


def foreign_file(split: str | None, kind: str) -> str:
    """Name of a file that is kept beside foreign tars."""
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
    return _Foreign(index, stats, notes, checksums, _fingerprint(index, checksums))


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
            mark = str(stored.get("fingerprint") or _fingerprint(index, checksums))  # older ones do not have it
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue
        if index.tag == tag and index.shard_names == list(names):
            return _Foreign(index, stats, [str(note) for note in stored["notes"]], checksums, mark)
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
