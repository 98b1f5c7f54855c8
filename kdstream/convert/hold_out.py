"""A validation split for a source that has none: the same share of every class, drawn by the images' keys."""

from __future__ import annotations

import hashlib

import numpy as np

from kdstream.convert.split import Source, Split
from kdstream.errors import UserError

VAL = "val"


def hold_out(source: Source, share: float, seed: int = 0) -> Source:
    """The source with a split ``val`` that is drawn from ``train``.

    Of n images of a class the nearest whole number to n times ``share`` are drawn: those whose keys have the least
    hashes. An image's fate depends on the keys of its class and the seed only, and whoever takes a larger share holds
    out the same images and more.

    Args:
        source: with a split ``train`` and none that is called ``val``.
        share: of the images, above 0 and below 1.
        seed: of the draw.

    Raises:
        UserError: a source with a validation split, or without images to train with; a share that takes no or all
            images.
    """
    if not 0 < share < 1:
        raise UserError(f"hold out a share of the images between 0 and 1, as 0.1, not {share}")
    if VAL in source.splits:
        raise UserError(f"{source.name} has the split 'val' already, there is nothing to hold out from 'train'")
    if "train" not in source.splits:
        raise UserError(f"images are held out of the split 'train', {source.name} has {', '.join(source.splits)}")
    train = source.splits["train"]
    held = np.zeros(len(train), bool)
    by_class = np.argsort(train.labels, kind="stable")
    bounds = np.searchsorted(train.labels[by_class], np.arange(len(source.classes) + 1))
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        own = by_class[begin:end].tolist()
        own.sort(key=lambda i: _draw(train, i, seed))
        held[own[: round(len(own) * share)]] = True
    if not held.any() or held.all():
        what = "no image" if not held.any() else "all images"
        raise UserError(f"a share of {share} of every class is {what} of {source.name}: hold out another")
    splits: dict[str, Split] = {"train": train.subset(np.flatnonzero(~held)), VAL: train.subset(np.flatnonzero(held))}
    splits |= {name: split for name, split in source.splits.items() if name != "train"}
    note = (
        f"{held.sum():,} of {len(held):,} images are held out of 'train' as the split 'val' ({share:g} of each class)"
    )
    return Source(source.name, source.classes, splits, [*source.notes, note], source.root)


def _draw(split: Split, i: int, seed: int) -> bytes:
    # A hash, not a random generator: the same draw with every version of every library.
    return hashlib.blake2b(f"{seed} hold-out {split.keys[i]}".encode(), digest_size=16).digest()
