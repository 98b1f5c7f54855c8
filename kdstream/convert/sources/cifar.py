"""cifar10 and cifar100: in torchvision's form, downloaded where they are absent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdstream.convert.split import ArraySplit, Source, Split, unique_keys
from kdstream.data.cache_folder import cache_folder
from kdstream.errors import UserError


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
