"""Opening a split of a data set folder: sets with a dataset.json, and other people's tars."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdstream.bars import reading_progress
from kdstream.data.checksums import (
    Checksum,
    Checksums,
    cached,
    state_of,
)
from kdstream.data.dataset_info import (
    DATASET_FILE,
    WORK_FOLDER,
    DatasetInfo,
    ShardInfo,
    SplitInfo,
    load_dataset_info,
)
from kdstream.data.foreign import open_foreign, tars_of
from kdstream.data.index import Index, build_index
from kdstream.data.kept import checksums_of, store
from kdstream.data.shard_set import ShardSet, other_size
from kdstream.errors import UserError

if TYPE_CHECKING:
    pass


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
        if split not in info.splits and not tars_of(target):
            raise UserError(f"{folder} has no split {split!r}: found {', '.join(info.splits)}")
        if split in info.splits:
            return open_own(folder, split, info)
    if (target / DATASET_FILE).is_file():
        splits = load_dataset_info(target).splits
        raise UserError(
            f"{text} is a data set of several splits: name one, as in {Path(text) / next(iter(splits))}"
            if len(splits) > 1
            else f"name the split too: {Path(text) / next(iter(splits))}"
        )
    return open_foreign(target, text, _reopen)


def has_split(folder: Path, split: str) -> bool:
    """Whether a data set folder is meant to have this split, be its shards whole, damaged or gone.

    Raises:
        UserError: dataset.json is damaged.
    """
    if (folder / DATASET_FILE).is_file():
        return split in load_dataset_info(folder).splits or bool(tars_of(folder / split))
    return (folder / split).is_dir() or bool(tars_of(folder, split))


def _reopen(source: str, fingerprint: str) -> ShardSet:
    shards = open_shards(source)
    if shards.fingerprint != fingerprint:
        raise UserError(f"the shards at {source} have changed since they were opened: start again")
    return shards


def open_own(folder: Path, split: str, info: DatasetInfo) -> ShardSet:
    """Open a split of a set that has a dataset.json."""
    part = info.splits[split]
    checksums = _check_own(folder, split, part.shards)
    index = _own_index(folder, part)
    if len(index) != part.count or index.shard_names != [shard.name for shard in part.shards]:
        raise UserError(stale(folder / part.index))
    if index.classes > len(info.classes):
        raise UserError(
            f"{folder / DATASET_FILE} names {len(info.classes)} classes, but a sample of {split} has "
            f"class {index.classes - 1}; make the shards again with --force"
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
        reopen=_reopen,
        notes=[f"{DATASET_FILE} has been changed since it was made"] if info.changed else [],
    )


def _check_own(folder: Path, split: str, shards: Sequence[ShardInfo]) -> list[Checksum]:
    """That the shards are those of dataset.json: sizes always, contents where nothing is remembered of them."""
    for shard in shards:
        problem = size_problem(folder / shard.name, shard.bytes)
        if problem:
            raise UserError(f"{problem}; copy or make the shards again")
    memory = Checksums(folder, state_file(split))
    found = checksums_of(memory, [shard.name for shard in shards])
    damaged = [shard for shard, made in zip(shards, found, strict=True) if made.sha256 != shard.sha256]
    if damaged:
        raise other_checksums([folder / shard.name for shard in damaged], len(shards))
    return found


def other_checksums(paths: Sequence[Path], total: int) -> UserError:
    """The message about shards that are not those of dataset.json."""
    more = f" (and {len(paths) - 1} more of {total} shards)" if len(paths) > 1 else ""
    return UserError(f"shard {paths[0]} is damaged: its checksum differs{more}; copy or make the shards again")


def record_checksums(folder: Path, info: DatasetInfo, since: int) -> None:
    """Spare a data set that was just made its first check: remember the checksums of the shards that were written after
    ``since`` (ns since the epoch), in the user's cache folder. Older ones are read when the set is opened."""
    for split, part in info.splits.items():
        memory = Checksums(folder, state_file(split))
        for shard in part.shards:
            if state_of(folder / shard.name).mtime >= since:
                memory.remember(shard.name, shard.sha256)
        memory.save([cached(folder, state_file(split))])


def state_file(split: str) -> str:
    """Name of the file in which a split's checksums are remembered."""
    return f"{split}.state"


def size_problem(path: Path, expected: int) -> str | None:
    """What is wrong with a shard's size, or with reading it; None: nothing."""
    try:
        return other_size(path, state_of(path).size, expected)
    except UserError as error:
        return str(error)


def _own_index(folder: Path, part: SplitInfo) -> Index:
    for path in (folder / part.index, cached(folder, part.index)):
        if path.is_file():
            index = Index.load(path, sum(shard.bytes for shard in part.shards))
            if index.tag != part.fingerprint:
                raise UserError(stale(path))
            return index
    with reading_progress(sum(shard.bytes for shard in part.shards), f"indexing {folder.name}") as advance:
        paths = [folder / shard.name for shard in part.shards]
        index = build_index(paths, part.fingerprint, lambda shard: advance(shard.bytes))
    store(part.index, index.save, (folder, cached(folder, part.index).parent))
    return index


def stale(path: Path) -> str:
    """The message about an index of other shards."""
    return f"index {path} belongs to other shards than {DATASET_FILE} names: delete it, then it is built anew"
