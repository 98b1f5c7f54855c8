"""cub200: Caltech-UCSD Birds-200-2011, as its archive unpacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdstream.convert.sources.listed import folder_of, named_files, number, rows
from kdstream.convert.split import Source
from kdstream.errors import UserError

LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def cub200(place: str, splits: Sequence[str] | None) -> Source:
    """Birds by the data set's own lists: ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` (1 =
    train, 0 = test), ``classes.txt``, and ``images/``.

    Args:
        place: the folder ``CUB_200_2011``, or the one that holds it.
        splits: see :func:`kdstream.convert.open_source.open_source`.

    Raises:
        UserError: lists or images are missing, or do not fit one another.
    """
    folder = folder_of("cub200", place, ["CUB_200_2011"], [*LISTS, "images"])
    classes = [words[1] for _, words in rows(folder / "classes.txt", 2)]
    names = _by_id(folder / "images.txt")
    labels = {
        image: number(folder / "image_class_labels.txt", line, word, len(classes)) - 1
        for line, (image, word) in rows(folder / "image_class_labels.txt", 2)
    }
    split_file = folder / "train_test_split.txt"
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for line, (image, word) in rows(split_file, 2):
        if word not in ("0", "1"):
            raise UserError(f"{split_file}, line {line}: {word!r} is neither 1 (train) nor 0 (test)")
        parts["train" if word == "1" else "test"].append(image)
    for image in names:
        if image not in labels:
            raise UserError(f"{folder / 'image_class_labels.txt'} has no image {image!r}, which images.txt names")
    for image in (image for part in parts.values() for image in part):
        if image not in names:
            raise UserError(f"{split_file} has an image {image!r}, which images.txt does not name")
    made = {
        name: named_files(folder / "images", [names[i] for i in part], [labels[i] for i in part], classes)
        for name, part in parts.items()
    }
    return Source(f"cub200:{folder}", classes, dict(made), root=folder)


def _by_id(file: Path) -> dict[str, str]:
    return {words[0]: words[1] for _, words in rows(file, 2)}
