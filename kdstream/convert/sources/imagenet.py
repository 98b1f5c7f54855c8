"""imagenet: ImageNet (ILSVRC 2012) with the validation images in class folders or, as they come, in one."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from kdstream.convert.image_listing import is_image_name
from kdstream.convert.sources.image_folders import imagefolder
from kdstream.convert.sources.listed import folder_of, named_files, number, rows
from kdstream.convert.split import Source, Split
from kdstream.errors import UserError

INSIDE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "ILSVRC2012")
DEVKIT = "ILSVRC2012_devkit_t12"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
LISTS = ("val.txt", "val_labels.txt", "imagenet_2012_validation_synset_labels.txt", "LOC_val_solution.csv")
_WNID = re.compile(r"n\d{8}")


def imagenet(place: str, splits: Sequence[str] | None) -> Source:
    """Class folders ``train/n01440764/...``; ``val`` in class folders too, or flat with a list of the classes.

    The classes are the training folders' names in sorted order, as torchvision's and timm's weights have them. The
    list for a flat ``val`` lies in DIR, or in a folder of its way up to the data set's (Kaggle's layout): the
    development kit (``ILSVRC2012_devkit_t12``, with ``meta.mat``); a list of "file class" lines or of classes alone, in
    the order of the files (``val.txt``, ``val_labels.txt``, ``imagenet_2012_validation_synset_labels.txt``), a class
    being a synset (n01440764) or a number from 0 in the sorted order; or ``LOC_val_solution.csv``.

    Args:
        place: the folder that holds ``train`` and ``val``, or Kaggle's ``ILSVRC`` around it.
        splits: see :func:`kdstream.convert.open_source.open_source`.

    Raises:
        UserError: folders are missing; a flat ``val`` without a list, or with one that does not fit.
    """
    folder = folder_of("imagenet", place, INSIDE, ["train"])
    val = folder / "val"
    if not val.is_dir() or any(entry.is_dir() for entry in os.scandir(val)):
        return imagefolder(str(folder), splits)
    wanted = [split for split in splits or ("train", "val") if split != "val"]
    train = imagefolder(str(folder / "train"), ["train"])
    files = sorted(entry.name for entry in os.scandir(val) if is_image_name(entry.name))
    if not files:
        raise UserError(f"imagenet: {val} holds no images")
    ways = [folder, *(up for up in list(folder.parents)[:3] if up.is_relative_to(Path(place).expanduser().absolute()))]
    labels = _labels(ways, files, train.classes)
    made: dict[str, Split] = {"train": train.splits["train"]} if "train" in wanted or splits is None else {}
    made["val"] = named_files(val, files, labels, train.classes)
    return Source(f"imagenet:{folder}", train.classes, made, train.notes, folder)


def _labels(ways: Sequence[Path], files: Sequence[str], classes: Sequence[str]) -> list[int]:
    """The class of every validation image, by whichever list is there."""
    for folder in ways:
        for truth in (folder / DEVKIT / "data" / GROUND_TRUTH, folder / "data" / GROUND_TRUTH, folder / GROUND_TRUTH):
            if truth.is_file():
                return _devkit(truth, files, classes)
        for name in LISTS:
            if (folder / name).is_file():
                return _list(folder / name, files, classes)
    raise UserError(
        f"imagenet: the images in {ways[0] / 'val'} lie in one folder, and nothing says their classes: put the "
        f"development kit ({DEVKIT}) or a list (val.txt: file and class a line) beside it, or sort them into folders"
    )


def _devkit(truth: Path, files: Sequence[str], classes: Sequence[str]) -> list[int]:
    """By the development kit, whose class numbers (ILSVRC2012_ID, from 1) have another order than the synsets."""
    from scipy.io import loadmat

    meta = truth.parent / "meta.mat"
    if not meta.is_file():
        raise UserError(f"{truth} counts classes as meta.mat does, and {meta} is missing")
    try:
        synsets = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        wnids = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets.ravel()}
    except Exception as error:  # SciPy raises many kinds for damaged files
        raise UserError(f"{meta} is not the development kit's ({' '.join(str(error).split())})") from error
    numbers = [number(truth, line, words[0]) for line, words in rows(truth, 1)]
    _check_count(truth, len(numbers), len(files))
    of = _finder(truth, classes)
    return [of(wnids.get(one, str(one)), line) for line, one in enumerate(numbers, 1)]


def _list(file: Path, files: Sequence[str], classes: Sequence[str]) -> list[int]:
    of = _finder(file, classes)
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as lines:
            said = [(row[0], row[1].split()[0], line) for line, row in enumerate(csv.reader(lines), 1) if len(row) > 1]
        said = [row for row in said if row[0] != "ImageId"]
    else:
        first = next((line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()), "")
        columns = min(len(first.split()), 2)
        if columns == 1:
            given = [(words[0], line) for line, words in rows(file, 1)]
            _check_count(file, len(given), len(files))
            return [of(word, line) for word, line in given]
        said = [(words[0], words[1], line) for line, words in rows(file, 2)]
    labels = {os.path.splitext(os.path.basename(name))[0]: of(word, line) for name, word, line in said}
    lacking = [name for name in files if os.path.splitext(name)[0] not in labels]
    if lacking:
        raise UserError(f"{file} says no class for {len(lacking):,} of {len(files):,} images, e.g. {lacking[0]}")
    return [labels[os.path.splitext(name)[0]] for name in files]


def _check_count(file: Path, count: int, images: int) -> None:
    if count != images:
        raise UserError(f"{file} has {count:,} lines for {images:,} images in val: one of them is not whole")


def _finder(file: Path, classes: Sequence[str]) -> Callable[[str, int], int]:
    """What finds a class by its synset, or by its number from 0 where it is no synset."""
    known = {name: i for i, name in enumerate(classes)}

    def find(word: str, line: int) -> int:
        if word in known:
            return known[word]
        if word.isascii() and word.isdigit() and int(word) < len(classes) and not _WNID.fullmatch(word):
            return int(word)
        raise UserError(f"{file}, line {line}: {word!r} is no class of the training images (such as {classes[0]!r})")

    return find
