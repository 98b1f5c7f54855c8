"""Opening a split whose shards lie elsewhere: dataset.json and index are fetched first, shards when they are needed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from kdstream.addresses import joined, public
from kdstream.bars import progress_bars
from kdstream.data.checksums import Checksum, FileState
from kdstream.data.dataset_info import DATASET_FILE, DatasetInfo, SplitInfo, load_dataset_info
from kdstream.data.index import Index
from kdstream.data.remote_cache import PLACE, SIZE, Remote, RemoteCache, told_size
from kdstream.data.remote_file import check_address, receive_file
from kdstream.data.shard_set import ShardSet, _Shard, read_exactly, set_of
from kdstream.errors import UserError
from kdstream.web import NotReceived

MOST_INFO = 1 << 28
"""Bytes of a dataset.json: some hundreds a shard."""


class RemoteShardSet(ShardSet):
    """A split whose shards lie behind addresses; those that are read are in the cache meanwhile."""

    def __init__(self, *, cache: RemoteCache, files: list[Remote], **settings: Any):
        super().__init__(**settings)
        self._cache, self._files = cache, files
        self._by_path = {public(file.address): file for file in files}
        self._shards = [
            _Shard(public(file.address), shard.checksum) for file, shard in zip(files, self._shards, strict=True)
        ]

    def _read_bytes(self, shard: _Shard, start: int, length: int) -> bytes:
        descriptor = self._cache.open(self._by_path[shard.path]).descriptor
        try:
            return read_exactly(descriptor, shard.path, start, length)
        finally:
            os.close(descriptor)

    def prefetch(self, shard: int) -> None:
        with self._cache.file(self._files[shard], wait=0):
            pass

    @contextlib.contextmanager
    def holding(self, shard: int) -> Iterator[None]:
        with self._cache.file(self._files[shard]):
            yield


def open_remote(address: str, reopen: Callable[[str, str], ShardSet]) -> ShardSet:
    """Open one split of a data set that kdstream has made and that was copied to ``address``.

    Args:
        address: of the split, ``https://host/birds/train``; the files lie in its folder, as ``kdstream shards`` leaves
            them.
        reopen: what a process does that unpickles the set, see :class:`ShardSet`.

    Raises:
        UserError: no such address, data set or split; files that are no longer what they were or do not fit.
    """
    check_address(address)
    folder, split = parent(address)
    cache = RemoteCache.of_this_machine()
    info, home, notes = _info(folder, cache)
    if split not in info.splits:
        found = ", ".join(info.splits)
        raise UserError(f"{public(folder)} has no split {split!r}: found {found}")
    part = info.splits[split]
    files = [Remote(joined(folder, one.name), one.bytes, one.sha256) for one in part.shards]
    with _said_of(home, folder):
        return set_of(
            info,
            split,
            _index(folder, home, part),
            kind=RemoteShardSet,
            shown=public(folder),
            name=public(folder).rstrip("/").rpartition("/")[2],
            path=home,
            checksums=[Checksum(one.sha256, FileState(one.bytes, 0, 0, 0)) for one in part.shards],
            source=address,
            reopen=reopen,
            notes=[*notes, _told(files, cache)],
            cache=cache,
            files=files,
        )


def has_remote_split(folder: str, split: str) -> bool:
    """Whether a data set behind an address has this split.

    Raises:
        UserError: there is none.
    """
    check_address(folder)
    return split in _info(folder, RemoteCache.of_this_machine())[0].splits


def parent(address: str) -> tuple[str, str]:
    """The address of the folder, and the name in it.

    Raises:
        UserError: an address of a host alone.
    """
    place, mark, rest = address.partition("?") if address.startswith(("http://", "https://")) else (address, "", "")
    folder, _, name = place.rstrip("/").rpartition("/")
    if not name or folder.endswith((":", ":/")):
        raise UserError(f"{public(address)} names no split: write ADDRESS/SPLIT, as in https://host/birds/train")
    return folder + mark + rest, name


def _told(files: list[Remote], cache: RemoteCache) -> str:
    """What a user should know of the cache."""
    there = [file.size or 0 for file in files if cache.has(file)]
    total, capacity = sum(file.size or 0 for file in files), cache.capacity()
    text = (
        f"{len(files):,} remote shards ({told_size(total)}) are fetched when they are needed and kept in {cache.root}, "
        f"where {len(there):,} are ({told_size(sum(there))})"
    )
    if total > capacity:
        text += (
            f"; it holds at most {told_size(capacity)}, and shuffled reading touches all shards again and again: set "
            f"{SIZE} or {PLACE}, or data.order=sequential"
        )
    return text


def _info(folder: str, cache: RemoteCache) -> tuple[DatasetInfo, Path, list[str]]:
    """dataset.json, the local folder for what belongs to the set, and what a user should know."""
    home = cache.root / "sets" / hashlib.sha256(public(folder).encode()).hexdigest()[:16]
    notes: list[str] = []
    try:
        _fetch(joined(folder, DATASET_FILE), home / DATASET_FILE, MOST_INFO)
    except NotReceived as error:
        if error.status is not None:
            raise UserError(
                f"no data set at {public(folder)} ({error}): copy all files that `kdstream shards` made to one folder "
                "there; tars of others are read by kd.Stream(ADDRESS with {000..099}.tar, order='sequential')"
            ) from None
        if not (home / DATASET_FILE).is_file():
            raise
        notes.append(f"{error}; what was there before is used, {home / DATASET_FILE}")
    with _said_of(home, folder):
        info = load_dataset_info(home)
    return info, home, notes + ([f"{DATASET_FILE} has been changed since it was made"] if info.changed else [])


def _index(folder: str, home: Path, part: SplitInfo) -> Index:
    """The split's index, fetched where it is not there."""
    total = sum(shard.bytes for shard in part.shards)
    path = home / f"{part.fingerprint[:16]}-{part.index}"
    for fetched in (False, True):
        if fetched:
            try:
                _fetch(joined(folder, part.index), path, total + (1 << 20))
            except NotReceived as error:
                raise UserError(f"{error}: the index belongs beside {DATASET_FILE}; copy it there") from None
        elif not path.is_file():
            continue
        try:
            index = Index.load(path, total)
            if index.tag == part.fingerprint:
                return index
            wrong = f"index {path} belongs to other shards than {DATASET_FILE} names: copy both there again"
        except UserError as error:
            wrong = str(error)
        path.unlink(missing_ok=True)
    raise UserError(wrong)


def _fetch(address: str, path: Path, most: int) -> None:
    """Download a small file to its place, with a bar."""
    part = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with progress_bars(Console(stderr=True), "bytes") as bar:
            task = bar.add_task(path.name, total=None)
            receive_file(
                address, part, told=lambda done, total: bar.update(task, completed=done, total=total), most=most
            )
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot keep {public(address)} in {path.parent}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _said_of(home: Path, folder: str) -> Iterator[None]:
    """Messages name the place that the user knows."""
    try:
        yield
    except NotReceived:
        raise
    except UserError as error:
        raise UserError(str(error).replace(str(home), public(folder))) from None
