"""Where images come from: every source is some splits of (key, bytes, extension, label), of known length."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from kdstream.errors import UserError
from kdstream.registry import nearest
from kdstream.stream.index import IMAGE_EXTENSIONS

SPLIT_FOLDERS = ("train", "val", "test")
"""Folders of these names in an image folder are its splits."""


class Item(NamedTuple):
    """One image of a source.

    ``key``: readable and unique in its split, without dots. ``data``: the encoded image. ``extension``: lower case,
    without dot. ``label``: class number.
    """

    key: str
    data: bytes
    extension: str
    label: int


class Split(ABC):
    """A sequence of images that are read one by one, when asked for.

    Attributes:
        keys: n distinct keys.
        labels: int64 [n].
    """

    keys: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Item:
        return Item(self.keys[i], self.load(i), self.extension(i), int(self.labels[i]))

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))

    @abstractmethod
    def load(self, i: int) -> bytes:
        """The encoded image. Raises OSError when it cannot be read."""

    @abstractmethod
    def extension(self, i: int) -> str:
        """The image's extension."""

    @abstractmethod
    def where(self, i: int) -> str:
        """The image's place, for messages."""

    @abstractmethod
    def nbytes(self) -> int:
        """About how many bytes all images have."""

    @abstractmethod
    def subset(self, numbers: Sequence[int]) -> Split:
        """The images with these numbers, in this order; small enough to be sent to another process."""

    @abstractmethod
    def identity(self) -> str:
        """A hex hash that changes when the images, keys or labels do."""


@dataclass(frozen=True)
class Source:
    """Splits with a common list of classes.

    Attributes:
        name: kind and place, recorded with the shards.
        classes: names; a label is a position in this list.
        splits: name -> images.
        notes: what a user should know about what was found, one line each.
        root: the folder that is read, if any.
    """

    name: str
    classes: list[str]
    splits: dict[str, Split]
    notes: list[str] = field(default_factory=list)
    root: Path | None = None


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


# ---- keys


def unique_keys(parts: Iterable[Sequence[str]]) -> list[str]:
    """Keys ``a/b/stem`` from folder names and stems: what WebDataset would misread is replaced by ``_``, and the
    second and further of equal keys get ``-2``, ``-3``, ... Depends on the order only."""
    taken: set[str] = set()
    keys = []
    for names in parts:
        base = key = "/".join(_clean(name) for name in names)
        if base.startswith("__"):  # webdataset takes names like __meta__ for no samples
            base = key = "x" + base
        number = 2
        while key in taken:
            key, number = f"{base}-{number}", number + 1
        taken.add(key)
        keys.append(key)
    return keys


def _clean(name: str) -> str:
    return re.sub(r"[./\\\x00-\x1f\x7f\ud800-\udfff]", "_", name) or "_"


def _extension(name: str) -> str:
    extension = os.path.splitext(name)[1][1:].lower()
    return "jpg" if extension in ("jpeg", "jpe", "jfif") else extension


# ---- files


class FileSplit(Split):
    """Image files, whose bytes pass through untouched.

    Args:
        root: the folder that ``names`` are relative to.
        names: paths of the files.
        keys, labels: see :class:`Split`.
        states: (size in bytes, modification time in ns) of each file.
    """

    def __init__(
        self,
        root: str,
        names: Sequence[str],
        keys: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        states: Sequence[tuple[int, int]] | np.ndarray,
    ):
        self.root, self.names, self.keys = root, list(names), list(keys)
        self.labels = np.asarray(labels, np.int64).reshape(-1)
        self.states = np.asarray(states, np.int64).reshape(-1, 2)

    def load(self, i: int) -> bytes:
        with open(self.where(i), "rb", buffering=0) as file:
            return file.read()

    def extension(self, i: int) -> str:
        return _extension(self.names[i])

    def where(self, i: int) -> str:
        return os.path.join(self.root, self.names[i])

    def nbytes(self) -> int:
        return int(self.states[:, 0].sum())

    def subset(self, numbers: Sequence[int]) -> FileSplit:
        names, keys = [self.names[i] for i in numbers], [self.keys[i] for i in numbers]
        return FileSplit(self.root, names, keys, self.labels[numbers], self.states[numbers])

    def identity(self) -> str:
        digest = hashlib.sha256("\0".join(self.keys).encode())
        digest.update("\0".join(self.names).encode("utf-8", "surrogateescape"))
        digest.update(self.labels.tobytes() + self.states.tobytes())
        return digest.hexdigest()


def imagefolder(place: str, splits: Sequence[str] | None) -> Source:
    """Class folders: ``DIR/CLASS/.../image.jpg``; a DIR with train/, val/ or test/ has those splits, else "train"."""
    root = _existing_folder(place)
    top = _subfolders(root)
    found = [name for name in SPLIT_FOLDERS if name in top]
    extra = [name for name in top if name not in SPLIT_FOLDERS]
    if found and splits:
        found += [name for name in extra if name in splits]
        extra = []
    if not top:
        raise UserError(f"{root} has no class folders: expected {root}/CLASS/IMAGE or {root}/train/CLASS/IMAGE")
    if found and extra:
        raise UserError(
            f"{root} has splits ({', '.join(found)}) but also the folder {extra[0]!r}: is it a split? "
            f"then name all with --split, else move it away"
        )
    if not found:
        names = list(splits or ["train"])
        if len(names) > 1:
            raise UserError(f"{root} has class folders and no split folders, it makes one split, not {len(names)}")
        folders = {names[0]: root}
    else:
        folders = {name: root / name for name in found if splits is None or name in splits}
    if not folders:
        raise UserError(f"{root} has no split {splits[0]!r}: found {', '.join(found)}")  # type: ignore[index]
    classes = _same_classes({name: _subfolders(folder) for name, folder in folders.items()}, root)
    ignored: list[str] = []
    made: dict[str, Split] = {}
    filled: set[int] = set()
    for name, folder in folders.items():
        made[name] = split = _class_folders(folder, classes, ignored)
        filled.update(np.unique(split.labels).tolist())
    if empty := [classes[c] for c in range(len(classes)) if c not in filled]:
        raise UserError(
            f"class folder {empty[0]!r} in {root} holds no image"
            + (f", nor do {len(empty) - 1} others" if len(empty) > 1 else "")
            + f": remove it, or add files that end in .{', .'.join(IMAGE_EXTENSIONS[:5])}, ..."
        )
    notes = [f"{len(ignored):,} files without an image's extension left out, e.g. {ignored[0]}"] if ignored else []
    return Source(f"imagefolder:{root}", classes, made, notes, root)


def _existing_folder(place: str) -> Path:
    if not place:
        raise UserError("source 'imagefolder' needs a folder: imagefolder:DIR")
    root = Path(os.path.abspath(os.path.expanduser(place)))
    if not root.is_dir():
        raise UserError(f"source folder {root} {'is a file' if root.exists() else 'does not exist'}")
    return root


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not _hidden(entry.name))


def _same_classes(found: dict[str, list[str]], root: Path) -> list[str]:
    first, classes = next(iter(found.items()))
    for split, names in found.items():
        if names != classes:
            odd = sorted(set(names) ^ set(classes))[0]
            has, lacks = (split, first) if odd in names else (first, split)
            raise UserError(f"splits of {root} differ in classes: {has!r} has the folder {odd!r}, {lacks!r} has not")
    if not classes:
        raise UserError(f"{root / first} has no class folders: expected {root / first}/CLASS/IMAGE")
    for name in classes:
        if not _is_text(name):
            raise UserError(f"class folder {name!r} in {root} has a name that is not valid UTF-8: rename it")
    return classes


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _class_folders(folder: Path, classes: Sequence[str], ignored: list[str]) -> FileSplit:
    names: list[str] = []
    labels: list[int] = []
    states: list[tuple[int, int]] = []
    for label, name in enumerate(classes):
        for path, size, time in sorted(_images(folder / name, name, ignored, ())):
            names.append(path)
            labels.append(label)
            states.append((size, time))
    keys = unique_keys(os.path.splitext(name)[0].split("/") for name in names)
    return FileSplit(str(folder), names, keys, labels, states)


def _images(folder: Path, prefix: str, ignored: list[str], above: tuple) -> Iterator[tuple[str, int, int]]:
    """(path, size, time) of the images below a folder. Links to folders are followed, but not round in circles."""
    state = os.stat(folder)
    here = (state.st_dev, state.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _hidden(entry.name):
                continue
            path = f"{prefix}/{entry.name}"
            if entry.is_dir():
                yield from _images(Path(entry.path), path, ignored, (*above, here))
            elif _is_image(entry.name):
                try:
                    state = entry.stat()
                except OSError as error:
                    raise UserError(f"cannot read {entry.path}: {error.strerror or error}") from error
                if not stat.S_ISREG(state.st_mode):
                    raise UserError(f"cannot read {entry.path}: it is no file")  # a pipe would wait for ever
                yield path, state.st_size, state.st_mtime_ns
            else:
                ignored.append(path)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1][1:].lower() in IMAGE_EXTENSIONS


def csv_table(place: str, splits: Sequence[str] | None) -> Source:
    """A CSV file with the columns path, label and, optionally, split. Paths are relative to the file's folder.

    A header is needed only for another order of the columns. Labels that all are whole numbers are class numbers;
    others are names, numbered in sorted order. Without a column split there is one, "train".
    """
    if not place:
        raise UserError("source 'csv' needs a file: csv:FILE")
    file = Path(os.path.abspath(os.path.expanduser(place)))
    columns, rows = _read_csv(file)
    if not rows:
        raise UserError(f"{file} has no rows")
    names = list(splits or ["train"])
    if "split" not in columns and len(names) > 1:
        raise UserError(f"{file} has no column 'split', it makes one split, not {len(names)}")
    table: dict[str, list[tuple[int, str, str]]] = {}
    for line, row in rows:
        if len(row) <= max(columns.values()):
            raise UserError(f"{file}, line {line}: {len(row)} columns instead of {max(columns.values()) + 1}")
        path, label = row[columns["path"]].strip(), row[columns["label"]].strip()
        split = row[columns["split"]].strip() if "split" in columns else names[0]
        for what, value in (("path", path), ("label", label), ("split", split)):
            if not value:
                raise UserError(f"{file}, line {line}: the {what} is empty")
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise UserError(f"{file}, line {line}: split {split!r} is no name (letters, digits, _)")
        table.setdefault(split, []).append((line, path, label))
    labels = {label for part in table.values() for _, _, label in part}
    notes = []
    if all(re.fullmatch("[0-9]{1,6}", label) for label in labels):
        classes = [str(number) for number in range(max(map(int, labels)) + 1)]
        numbers = {label: int(label) for label in labels}
        empty = sorted(set(range(len(classes))) - set(numbers.values()))
        if empty:
            notes = [f"{len(empty):,} of the classes 0..{len(classes) - 1} have no row, e.g. {empty[0]}"]
    else:
        classes = sorted(labels)
        numbers = {label: number for number, label in enumerate(classes)}
    made: dict[str, Split] = {}
    for split, part in table.items():
        states = [_csv_file(file, line, path) for line, path, _ in part]
        keys = unique_keys((label, os.path.splitext(os.path.basename(path))[0]) for _, path, label in part)
        made[split] = FileSplit(
            str(file.parent), [path for _, path, _ in part], keys, [numbers[label] for _, _, label in part], states
        )
    return Source(f"csv:{file}", classes, made, notes, None)


def _read_csv(file: Path) -> tuple[dict[str, int], list[tuple[int, list[str]]]]:
    """Position of each column, and the rows with their line numbers."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no CSV file in UTF-8: {error}") from error
    columns = {"path": 0, "label": 1}
    head = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if {"path", "label"} <= set(head):
        columns = {name: head.index(name) for name in ("path", "label", "split") if name in head}
        rows = rows[1:]
    return columns, rows


def _csv_file(file: Path, line: int, path: str) -> tuple[int, int]:
    where = f"{file}, line {line}"
    try:
        state = os.stat(file.parent / path)
    except (OSError, ValueError) as error:
        header = "; a header must name the columns path and label" if line == 1 else ""
        raise UserError(f"{where}: there is no file {str(file.parent / path)!r}{header}") from error
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{where}: {str(file.parent / path)!r} is no file")
    if not _is_image(path):
        raise UserError(f"{where}: {path!r} does not end in .jpg, .png or another image's extension")
    return state.st_size, state.st_mtime_ns


# ---- arrays


class ArraySplit(Split):
    """Raw pixels, stored without loss as PNG.

    Args:
        images: uint8 [n,H,W] (grey) or [n,H,W,3] (RGB).
        keys, labels: see :class:`Split`.
    """

    def __init__(self, images: np.ndarray, keys: Sequence[str], labels: Sequence[int] | np.ndarray):
        self.images, self.keys, self.labels = images, list(keys), np.asarray(labels, np.int64)

    def load(self, i: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.images[i]).save(buffer, "PNG")
        return buffer.getvalue()

    def extension(self, i: int) -> str:
        return "png"

    def where(self, i: int) -> str:
        return self.keys[i]

    def nbytes(self) -> int:
        return int(self.images.nbytes)

    def subset(self, numbers: Sequence[int]) -> ArraySplit:
        return ArraySplit(self.images[numbers], [self.keys[i] for i in numbers], self.labels[numbers])

    def identity(self) -> str:
        digest = hashlib.sha256("\0".join(self.keys).encode())
        digest.update(str(self.images.shape).encode() + self.labels.tobytes())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()


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
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    root = Path(os.path.abspath(os.path.expanduser(place)) if place else os.path.join(cache, "kdstream", name))
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
