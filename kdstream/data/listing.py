"""Shards that nobody has indexed, by their names alone: read one after the other, each as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from kdstream.addresses import is_url, public
from kdstream.data.foreign import tars_of
from kdstream.data.index import ScannedShard, scan_shard
from kdstream.data.remote_cache import Kept, Remote, RemoteCache
from kdstream.data.remote_file import check_address, is_web, list_tars, look
from kdstream.data.shard_set import ShardSet, read_exactly
from kdstream.data.shards import open_shards
from kdstream.errors import UserError

if TYPE_CHECKING:
    from kdstream.batch import Sample

MOST_SHARDS = 1 << 20
IN_A_SHARD = 32
"""Bits of a sample's number that are its place in its shard; the others are the shard's number."""


class Listing:
    """Shards without an index. Samples are numbered by shard and place: shard << 32 | place.

    Attributes:
        name, split, path: as of a :class:`~kdstream.data.shard_set.ShardSet`, for messages.
        shard_places: as the user knows them.
        fingerprint: of the names.
    """

    def __init__(self, text: str, shards: list[str]):
        self.text, self.shards = text, shards
        self.shard_places = [public(shard) for shard in shards]
        if len(set(self.shard_places)) < len(shards):
            raise UserError(f"{public(text)} names a shard twice")
        self.name, self.split, self.path = public(text), "all", public(text)
        self.fingerprint = hashlib.sha256(json.dumps(self.shard_places).encode()).hexdigest()[:32]
        self._cache = RemoteCache.of_this_machine()
        self._scanned = lru_cache(4)(self._scan)
        self._remote = lru_cache(64)(self._looked_up)

    def __reduce__(self) -> tuple[type[Listing], tuple[str, list[str]]]:
        return Listing, (self.text, self.shards)

    def counts(self) -> None:
        """Unknown."""

    def numbers(self, shard: int) -> range:
        """The numbers of a shard's samples; the shard is fetched for it.

        Raises:
            UserError: it cannot be fetched, is damaged, or does not fit.
        """
        count = len(self._scanned(shard).samples)
        return range(shard << IN_A_SHARD, (shard << IN_A_SHARD) + count)

    def read(self, number: int) -> Sample:
        """A sample, as :meth:`~kdstream.data.shard_set.ShardSet.read` gives it."""
        shard, place = number >> IN_A_SHARD, number & ((1 << IN_A_SHARD) - 1)
        key, _, members = self._scanned(shard).samples[place]
        sample: Sample = {"__key__": key, "__url__": self.shard_places[shard]}
        with self._file(shard) as kept:
            for extension, offset, size in members:
                sample[extension] = read_exactly(kept.descriptor, self.shard_places[shard], offset, size)
        sample["index"] = number
        return sample

    def prefetch(self, shard: int) -> None:
        """Have a shard at hand, if there is room."""
        if is_url(self.shards[shard]):
            with self._cache.file(self._remote(shard), wait=0):
                pass

    @contextlib.contextmanager
    def holding(self, shard: int) -> Iterator[None]:
        """Within the block, a shard stays at hand."""
        with self._file(shard):
            yield

    def _looked_up(self, shard: int) -> Remote:
        address = self.shards[shard]
        size, version = look(address)
        return Remote(address, size, version=version)

    @contextlib.contextmanager
    def _file(self, shard: int) -> Iterator[Kept]:
        place = self.shards[shard]
        if is_url(place):
            with self._cache.file(self._remote(shard)) as kept:
                yield kept
            return
        try:
            descriptor = os.open(place, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"cannot read shard {place}: {error.strerror or error}") from error
        try:
            yield Kept(place, descriptor)
        finally:
            os.close(descriptor)

    def _scan(self, shard: int) -> ScannedShard:
        with self._file(shard) as kept:
            try:
                found = scan_shard(Path(kept.path))
            except UserError as error:
                raise UserError(str(error).replace(kept.path, self.shard_places[shard])) from None
        if len(found.samples) >= 1 << IN_A_SHARD:
            raise UserError(f"shard {self.shard_places[shard]} has too many samples")
        return found


def is_listing(text: str) -> bool:
    """Whether shards are named one by one: ``birds-{000..099}.tar``."""
    return text.partition("?")[0].endswith(".tar") or "{" in text


def open_listing(text: str) -> Listing:
    """The shards that a text names.

    Args:
        text: a tar, or tars with braces (``https://host/birds-{000..099}.tar``, ``/data/{a,b}-{00..15}.tar``); a folder
            of tars, or what stands for one in a store of objects (``s3://bucket/birds``).

    Raises:
        UserError: no shards, or too many.
    """
    import braceexpand

    if is_url(text):
        check_address(text)
    if not is_listing(text):
        found = [] if is_web(text) else list_tars(text) if is_url(text) else [str(one) for one in tars_of(Path(text))]
        if not found:
            raise UserError(
                f"no shards at {public(text)}" + (": name them, as in birds-{000..099}.tar" if is_web(text) else "")
            )
        return Listing(text, found)
    if _about(text) > MOST_SHARDS:
        raise UserError(f"{public(text)} names more than {MOST_SHARDS:,} shards")
    try:
        shards = list(braceexpand.braceexpand(text))
    except ValueError as error:
        raise UserError(f"{public(text)} is no list of shards ({error}): write it as birds-{{000..099}}.tar") from None
    return Listing(text, shards if is_url(text) else [os.path.abspath(os.path.expanduser(one)) for one in shards])


def _about(text: str) -> int:
    """How many names the braces of a text stand for, or more: they are told before they are made."""
    ranges = [abs(int(last) - int(first)) + 1 for first, last in re.findall(r"\{(-?\d{1,18})\.\.(-?\d{1,18})", text)]
    choices = [inside.count(",") + 1 for inside in re.findall(r"\{([^{}]*)\}", text)]
    return math.prod(ranges) * math.prod(choices)


def open_to_go_through(place: str | Path) -> ShardSet | Listing:
    """What is read shard by shard: an indexed split where there is one, else shards by their names.

    Raises:
        UserError: nothing of the kind.
    """
    text = str(place)
    if is_listing(text):
        return open_listing(text)
    try:
        return open_shards(place)
    except UserError:
        if not is_url(text) or is_web(text):
            raise
        with contextlib.suppress(UserError):  # a store says what lies there
            return open_listing(text)
        raise
