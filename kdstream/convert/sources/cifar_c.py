"""cifar10c and cifar100c: the CIFAR test sets under common corruptions, as .npy files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdstream.convert.sources.listed import folder_of
from kdstream.convert.split import ArraySplit, Source, unique_keys
from kdstream.errors import UserError

SEVERITIES = 5
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
CIFAR100 = tuple(_FINE.split())


def cifar_c(kind: str, place: str, classes: Sequence[str], splits: Sequence[str] | None) -> Source:
    """A corrupted CIFAR test set: ``CORRUPTION.npy``, uint8 [5 n,32,32,3], the n images at severity 1, then 2, ..., and
    ``labels.npy`` [5 n].

    Every corruption at every severity is a split, ``fog_3``.

    Source: Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions".

    Raises:
        UserError: files are missing, or are not what they should be.
    """
    folder = folder_of(kind, place, [f"CIFAR-{len(classes)}-C"], ["labels.npy"])
    labels = _array(folder / "labels.npy")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) % SEVERITIES or not len(labels):
        raise UserError(
            f"{folder / 'labels.npy'} holds {labels.dtype} {list(labels.shape)}, not labels for 5 severities"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(
            f"{folder / 'labels.npy'} has labels {labels.min()} to {labels.max()}, not 0 to {len(classes) - 1}"
        )
    files = sorted(file for file in folder.glob("*.npy") if file.name != "labels.npy")
    if not files:
        raise UserError(f"{folder} holds no corruptions (fog.npy, ...)")
    made, count = {}, len(labels) // SEVERITIES
    for file in files:
        wanted = [n for n in range(SEVERITIES) if splits is None or f"{file.stem}_{n + 1}" in splits]
        if not wanted:
            continue
        images = _array(file)
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
            raise UserError(f"{file} holds {images.dtype} {list(images.shape)}, not uint8 [{len(labels)}, 32, 32, 3]")
        for n in wanted:
            part = slice(n * count, (n + 1) * count)
            own = labels[part].astype(np.int64)
            keys = unique_keys((classes[label], f"{i:05d}") for i, label in enumerate(own.tolist()))
            made[f"{file.stem}_{n + 1}"] = ArraySplit(images[part], keys, own)
    if not made:
        raise UserError(f"{folder} has no {' or '.join(splits or ())}: its splits are such as {files[0].stem}_1")
    return Source(f"{kind}:{folder}", list(classes), dict(made), root=folder)


def _array(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is no array of numbers ({' '.join(str(error).split())})") from error


def cifar10c(place: str, splits: Sequence[str] | None) -> Source:
    """CIFAR-10-C, see :func:`cifar_c`."""
    return cifar_c("cifar10c", place, CIFAR10, splits)


def cifar100c(place: str, splits: Sequence[str] | None) -> Source:
    """CIFAR-100-C, see :func:`cifar_c`."""
    return cifar_c("cifar100c", place, CIFAR100, splits)
