"""Where images come from: the known sources, and those of files; see :mod:`~kdstream.convert.split`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdstream.convert.sources.image_folders import imagefolder
from kdstream.convert.sources.image_table import csv_table
from kdstream.convert.split import ArraySplit, Source, Split, unique_keys
from kdstream.data.cache_folder import cache_folder
from kdstream.errors import UserError
from kdstream.registry import nearest


def open_source(text: str, splits: Sequence[str] | None = None) -> Source:
    """The source that a command line calls ``text``.

    Args:
        text: ``digits``, ``imagefolder:DIR``, ``cifar10[:DIR]``, ``cifar100[:DIR]`` or ``csv:FILE``.
        splits: these splits only. For a source without splits of its own, one name that it gets instead of "train".

    Raises:
        UserError: an unknown source, or one that cannot be read; unknown splits; a split without images.
    """
    kind, colon, place = text.partition(":")
    if kind not in SOURCES:
        hint = f"did you mean imagefolder:{text}?" if os.path.isdir(text) else nearest(kind, SOURCES)
        hint = f"did you mean csv:{text}?" if os.path.isfile(text) and text.endswith(".csv") else hint
        raise UserError(f"unknown source {text!r}: {hint}")
    if colon and not place:
        raise UserError(f"source {text!r}: nothing follows the colon")
    source = SOURCES[kind](place, splits)
    unknown = [name for name in splits or () if name not in source.splits]
    if unknown:
        raise UserError(f"source {text!r} has no split {unknown[0]!r}: found {', '.join(source.splits)}")
    for name, split in source.splits.items():
        if not len(split):
            raise UserError(f"split {name!r} of {text!r} holds no images")
    if splits is not None:
        chosen = {name: source.splits[name] for name in source.splits if name in splits}
        source = Source(source.name, source.classes, chosen, source.notes, source.root)
    return source


def digits(place: str, splits: Sequence[str] | None) -> Source:
    """The 1,797 handwritten digits (8x8, grey) that ship with scikit-learn, as 16x16 by bilinear interpolation.

    Splits "train" and "val", 80/20 within each class, always the same.
    """
    if place:
        raise UserError(f"source 'digits' ships with scikit-learn and takes no place, not {place!r}")
    from sklearn.datasets import load_digits

    data = load_digits()
    small = np.rint(data.images * (255 / 16)).astype(np.uint8)
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)) for image in small]
    )
    labels = data.target.astype(np.int64)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        members = np.flatnonzero(labels == label).tolist()
        # A hash, not a random generator: the same split with every version of every library.
        members.sort(key=lambda i: hashlib.blake2b(f"digits {i}".encode()).digest())
        held_out[members[: round(len(members) / 5)]] = True
    keys = [f"{label}/{i:04d}" for i, label in enumerate(labels.tolist())]
    whole = ArraySplit(images, keys, labels)
    made: dict[str, Split] = {
        "train": whole.subset(np.flatnonzero(~held_out)),  # type: ignore[arg-type]
        "val": whole.subset(np.flatnonzero(held_out)),  # type: ignore[arg-type]
    }
    return Source("digits", [str(label) for label in range(10)], made)


def cifar(dataset: Any, name: str, place: str) -> Source:
    """CIFAR through torchvision, which checks the files' checksums before it reads them.

    Args:
        dataset: ``torchvision.datasets.CIFAR10``, ``CIFAR100``, or a class derived from them that names other files.
        name: recorded with the shards.
        place: the folder that holds torchvision's folder (``cifar-10-batches-py``); downloaded into it when absent.
            Empty: ``kdstream/NAME`` in the user's cache folder.
    """
    root = Path(os.path.abspath(os.path.expanduser(place))) if place else cache_folder(name)
    present = (root / dataset.base_folder).is_dir()
    made: dict[str, Split] = {}
    classes: list[str] = []
    for split, train in (("train", True), ("test", False)):
        try:
            data = dataset(root, train=train, download=not present)
        except Exception as error:
            if present:
                raise UserError(
                    f"{name}: the files in {root / dataset.base_folder} are not those that torchvision knows "
                    "(checksums differ): remove the folder, then they are downloaded again"
                ) from error
            raise UserError(f"{name}: download into {root} failed ({error})") from error
        classes = [str(label) for label in data.classes]
        keys = unique_keys((classes[label], f"{i:05d}") for i, label in enumerate(data.targets))
        made[split] = ArraySplit(data.data, keys, data.targets)
    return Source(f"{name}:{root}", classes, made)


def cifar10(place: str, splits: Sequence[str] | None) -> Source:
    """CIFAR-10, see :func:`cifar`."""
    from torchvision.datasets import CIFAR10

    return cifar(CIFAR10, "cifar10", place)


def cifar100(place: str, splits: Sequence[str] | None) -> Source:
    """CIFAR-100, see :func:`cifar`."""
    from torchvision.datasets import CIFAR100

    return cifar(CIFAR100, "cifar100", place)


SOURCES: dict[str, Callable[[str, Sequence[str] | None], Source]] = {
    "digits": digits,
    "imagefolder": imagefolder,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "csv": csv_table,
}
