"""tars: shards that exist already, to be cut anew: other sizes, other splits, smaller images."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdstream.convert.split import Source, Split, unique_keys
from kdstream.data.dataset_info import DATASET_FILE, load_dataset_info
from kdstream.data.foreign import foreign_splits
from kdstream.data.index import IMAGE_EXTENSIONS
from kdstream.data.shard_set import ShardSet
from kdstream.data.shards import open_shards
from kdstream.errors import UserError


class ShardSplit(Split):
    """Images of opened shards, whose bytes pass through untouched.

    Args:
        shards: the opened split.
        numbers: int64 [n], of its samples.
        keys: n distinct keys.
    """

    def __init__(self, shards: ShardSet, numbers: Sequence[int] | np.ndarray, keys: Sequence[str]):
        self.shards, self.numbers, self.keys = shards, np.asarray(numbers, np.int64), list(keys)
        self.labels = np.asarray(shards.labels[self.numbers])

    def load(self, i: int) -> bytes:
        sample = self.shards.read(int(self.numbers[i]))
        return sample[next(name for name in sample if name in IMAGE_EXTENSIONS)]

    def extension(self, i: int) -> str:
        return next(e for e in self.shards.members(int(self.numbers[i])) if e in IMAGE_EXTENSIONS)

    def where(self, i: int) -> str:
        return f"{self.shards.path}: {self.shards.key(int(self.numbers[i]))}"

    def nbytes(self) -> int:
        return self.shards.nbytes * len(self) // len(self.shards)

    def subset(self, numbers: Sequence[int] | np.ndarray) -> ShardSplit:
        return ShardSplit(self.shards, self.numbers[numbers], [self.keys[i] for i in numbers])

    def identity(self) -> str:
        digest = hashlib.sha256(self.shards.fingerprint.encode() + self.numbers.tobytes())
        digest.update("\0".join(self.keys).encode())
        return digest.hexdigest()


def tars(place: str, splits: Sequence[str] | None) -> Source:
    """Shards of kdstream or of others: all splits of a data set folder, one folder of tars, or some of its tars.

    Args:
        place: a folder; or a folder with a pattern behind it, ``/data/x/train-{000..009}.tar`` or
            ``/data/x/*-train-*.tar``, of the names of its tars.
        splits: see :func:`kdstream.convert.open_source.open_source`.

    Raises:
        UserError: no shards, or damaged ones; a pattern that fits none; splits whose classes differ.
    """
    if not place:
        raise UserError("source 'tars' needs a folder of shards: tars:DIR")
    root, pattern = Path(os.path.abspath(os.path.expanduser(place))), None
    if root.is_file() or (not root.is_dir() and root.parent.is_dir() and any(mark in root.name for mark in "*?[{")):
        root, pattern = root.parent, root.name
    if (root / DATASET_FILE).is_file():
        places = [root / name for name in load_dataset_info(root).splits]
    else:
        places = foreign_splits(root, place)
    opened: dict[str, ShardSet] = {}
    for one in places:
        shards = open_shards(one)
        name = "train" if len(places) == 1 and shards.split == "all" else shards.split
        if splits is None or name in splits:
            opened[name] = shards
    notes, made = list[str](), dict[str, Split]()
    for name, shards in opened.items():
        numbers = np.arange(len(shards))
        if pattern is not None:
            names = _expand(pattern)
            fits = [any(fnmatch.fnmatchcase(shard, name) for name in names) for shard in shards.shard_names]
            numbers = np.flatnonzero(np.asarray(fits, bool)[shards.shard_numbers])
            if not len(numbers):
                continue
        made[name] = ShardSplit(shards, numbers, unique_keys(shards.key(i).split("/") for i in numbers.tolist()))
        others = [e for e in shards.extensions if e not in IMAGE_EXTENSIONS and e != "cls"]
        notes += [f"{name}: {note}" for note in shards.notes]
        if others:
            notes.append(f"{name}: images and classes are taken; left out: .{', .'.join(others[:8])}")
    if not made:
        raise UserError(
            f"tars: no shard in {root} is called {pattern}" if pattern else f"tars: no such split in {root}"
        )
    longest = max((shards.classes for shards in opened.values()), key=len)
    if any(shards.classes != longest[: len(shards.classes)] for shards in opened.values()):
        raise UserError(f"tars: the splits in {root} name their classes differently: take one with --split")
    return Source(f"tars:{root}" + (f"/{pattern}" if pattern else ""), list(longest), made, notes, root)


def _expand(pattern: str) -> list[str]:
    """A pattern of names without braces: ``x-{0..2}.tar`` -> three names."""
    from braceexpand import braceexpand  # comes with webdataset

    try:
        return list(braceexpand(pattern))
    except ValueError:
        raise UserError(f"tars: the braces of {pattern!r} do not fit each other") from None
