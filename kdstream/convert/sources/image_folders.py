"""imagefolder: class folders, with or without splits around or inside of them, as people arrange them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdstream.convert.image_listing import LeftOut, find_images, hidden, is_image_name
from kdstream.convert.split import FileSplit, Source, Split, unique_keys
from kdstream.convert.split_names import split_of, splits_of
from kdstream.data.index import IMAGE_EXTENSIONS
from kdstream.errors import UserError

_PARTS = {
    "image", "images", "img", "imgs", "jpg", "jpeg", "png", "jpegimages", "pictures", "photos", "annotations", "labels",
    "segmentations", "unlabeled", "unlabelled",
}  # fmt: skip
"""Folders of these names hold parts of a data set, not a class."""
_ORDER = ("train", "val", "test")


@dataclass(frozen=True)
class _Look:
    """One folder, not deeper: its subfolders, and how many images lie directly in it."""

    folders: list[str]
    images: int
    image: str


def _look(folder: Path) -> _Look:
    folders, images, example = [], 0, ""
    with os.scandir(folder) as entries:
        for entry in entries:
            if hidden(entry.name):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif is_image_name(entry.name):
                images += 1
                example = min(example or entry.name, entry.name)
    return _Look(sorted(folders), images, example)


def imagefolder(place: str, splits: Sequence[str] | None) -> Source:
    """Class folders: ``DIR/CLASS/.../IMAGE``, ``DIR/SPLIT/CLASS/.../IMAGE`` or ``DIR/CLASS/SPLIT/.../IMAGE``.

    Splits are folders called train, val or test in one of the usual ways, or named by ``splits``. Folders that hold
    nothing but one other folder are passed through. Classes are the union over the splits, in sorted order. What was
    read otherwise than its name says is noted; what could be meant in two ways is refused.

    Raises:
        UserError: none of these arrangements, or one that can be read in two ways.
        OSError: a folder that cannot be read.
    """
    root = _existing_folder(place)
    notes: list[str] = []
    base = _inner(root, notes, stop_at_splits=True)
    top = _look(base)
    if not top.folders:
        raise _no_classes(base, top, "")
    roles = splits_of(top.folders)
    named = [name for name in splits or () if name in top.folders and _look(base / name).folders]
    if (roles and not _is_class(base, top, roles, notes)) or named:
        folders = _split_folders(base, top, roles, splits, notes)
        classes = {name: {c: c for c in _classes_of(folder, len(folders), base)} for name, folder in folders.items()}
    else:
        looks = {name: _look(base / name) for name in top.folders}
        inside = _splits_inside(base, looks, notes)
        if inside:
            chosen = [name for name in inside if splits is None or name in splits]
            if splits is not None and not chosen:
                raise UserError(f"{base} has no split {splits[0]!r}: found {', '.join(inside)}")
            folders = dict.fromkeys(chosen, base)
            classes = {name: inside[name] for name in chosen}
        else:
            names = list(splits or ["train"])
            if len(names) > 1:
                raise UserError(
                    f"{base} has class folders and no split folders, it makes one split, not {len(names)}: "
                    f"it holds {some_of(top.folders)}"
                )
            _check_no_hidden_splits(base, looks)
            deep = [name for name, look in looks.items() if len(look.folders) > 1 and not look.images]
            if deep and len(deep) < len(looks):
                notes.append(
                    f"unlike the other classes, {some_of(deep)} holds images in folders of its own only "
                    f"({some_of(looks[deep[0]].folders)}): all are taken for that class"
                )
            folders, classes = {names[0]: base}, {names[0]: {c: c for c in top.folders}}
    for folder in dict.fromkeys(folders.values()):
        if (look := _look(folder)).images:
            notes.append(
                f"{look.images:,} images that lie directly in {folder} belong to no class and are left out, "
                f"e.g. {look.image}"
            )
    every = _union(classes, base)
    left_out = LeftOut()
    made: dict[str, Split] = {}
    for name, folder in folders.items():
        made[name] = _class_folders(folder, every, classes[name], left_out)
    notes += _check_filled(base, every, made)
    notes += left_out.notes()
    return Source(f"imagefolder:{root}", every, made, notes, root)


def _existing_folder(place: str) -> Path:
    if not place:
        raise UserError("source 'imagefolder' needs a folder: imagefolder:DIR")
    root = Path(os.path.abspath(os.path.expanduser(place)))
    if not root.is_dir():
        archive = "; unpack it first" if root.suffix in (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar") else ""
        raise UserError(f"source folder {root} {f'is a file{archive}' if root.exists() else 'does not exist'}")
    return root


def _inner(folder: Path, notes: list[str], stop_at_splits: bool) -> Path:
    """The folder itself, or the one inside where it holds nothing but one folder of class folders or of splits."""
    outer = folder
    while True:
        look = _look(folder)
        if look.images or len(look.folders) != 1 or (stop_at_splits and split_of(look.folders[0])):
            break
        inner = _look(folder / look.folders[0])
        if inner.images or not inner.folders:
            break
        folder = folder / look.folders[0]
    if folder != outer:
        notes.append(f"{outer} holds nothing but the folder {folder.relative_to(outer)}: read from there")
    return folder


def _no_classes(folder: Path, look: _Look, others: str) -> UserError:
    what = f"{look.images:,} images directly, e.g. {look.image}" if look.images else "no images"
    return UserError(
        f"{folder} has no class folders (it holds {what}): expected {folder}/CLASS/IMAGE or "
        f"{folder}/train/CLASS/IMAGE, or a table of paths and labels: csv:FILE{others}"
    )


def some_of(names: Sequence[str], most: int = 4) -> str:
    """The first few of many names, for messages."""
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most:,} others" if len(names) > most else "")


def _is_class(base: Path, top: _Look, roles: Mapping[str, str], notes: list[str]) -> bool:
    """Whether the one folder that is called like a split is a class (a train among vehicles): all hold images."""
    others = [name for name in top.folders if name not in roles]
    if len(roles) > 1 or len(others) < 2:
        return False
    looks = [_look(base / name) for name in top.folders]
    if any(look.folders or not look.images for look in looks):
        return False
    name = next(iter(roles))
    notes.append(f"the folder {name!r} holds images, as those beside it do: it is taken for a class, not for a split")
    return True


def _split_folders(
    base: Path, top: _Look, roles: Mapping[str, str], splits: Sequence[str] | None, notes: list[str]
) -> dict[str, Path]:
    """Name of each split that is wanted -> the folder that holds its class folders."""
    chosen: dict[str, str] = {}
    if splits is None:
        for name in top.folders:
            if name in roles:
                if (other := chosen.get(roles[name])) is not None:
                    raise UserError(
                        f"{base} has the folders {other!r} and {name!r}, and both say {roles[name]!r}: take those that "
                        f"you want under their own names, e.g. --split {' '.join(top.folders)}"
                    )
                chosen[roles[name]] = name
            elif _holds_images(base / name):
                alone = _look(base / name)
                flat = f" ({alone.images:,} images without class folders)" if alone.images else ""
                raise UserError(
                    f"{base} has splits ({', '.join(chosen) or ', '.join(roles)}) but also the folder {name!r}{flat}: "
                    f"is it a split? then name all with --split; to do without it: --split {' '.join(roles)}"
                )
            else:
                notes.append(f"the folder {name!r} holds no images: left out")
    else:
        for wanted in splits:
            same = [name for name in roles if roles[name] == wanted]
            if wanted in top.folders:
                chosen[wanted] = wanted
            elif len(same) == 1:
                chosen[wanted] = same[0]
            else:
                raise UserError(f"{base} has no split {wanted!r}: found {', '.join(top.folders)}")
    for name, folder in chosen.items():
        if name != folder:
            notes.append(f"the folder {folder!r} is read as the split {name!r}")
    order = sorted(chosen, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return {name: _inner(base / chosen[name], notes, stop_at_splits=False) for name in order}


def _holds_images(folder: Path) -> bool:
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not hidden(name)]
        if any(is_image_name(name) and not hidden(name) for name in files):
            return True
    return False


def _classes_of(folder: Path, splits: int, base: Path) -> list[str]:
    look = _look(folder)
    if not look.folders:
        alone = "" if splits < 2 else f"; to do without it, name the other splits: --split NAME (in {base})"
        raise _no_classes(folder, look, alone)
    return look.folders


def _splits_inside(base: Path, looks: Mapping[str, _Look], notes: list[str]) -> dict[str, dict[str, str]]:
    """Split -> class -> folder, where each class folder holds split folders (``CLASS/train/IMAGE``); else empty."""
    found: dict[str, dict[str, str]] = {}
    plain = []
    for name, look in looks.items():
        roles = splits_of(look.folders)
        if look.images or not roles or len(roles) < len(look.folders):
            plain.append(name)
            continue
        for folder, split in roles.items():
            if name in found.setdefault(split, {}):
                raise UserError(f"{base / name} has two folders that say {split!r}, one of them {folder!r}: rename one")
            found[split][name] = f"{name}/{folder}"
            deeper = _look(base / name / folder)
            if deeper.folders and not deeper.images:
                raise UserError(
                    f"{base} holds {some_of(list(looks))}, and {name!r} holds splits with class folders ({folder}/"
                    f"{deeper.folders[0]}): several data sets? name one: imagefolder:{base / name}"
                )
    if not found or (plain and len(found) == 1):  # one class with a folder "test" is no arrangement
        return {}
    if plain:
        split, example = next(iter(found.items()))
        raise UserError(
            f"the class folders in {base} differ: {next(iter(example))!r} holds split folders such as {split!r}, "
            f"{plain[0]!r} does not: use one arrangement, CLASS/SPLIT/IMAGE or SPLIT/CLASS/IMAGE"
        )
    found = {name: found[name] for name in _ORDER if name in found}
    notes.append(f"splits were found inside the class folders: {', '.join(found)}")
    return found


def _check_no_hidden_splits(base: Path, looks: Mapping[str, _Look]) -> None:
    """Refuse what may be splits of other names: folders that all hold the same folders."""
    if len(looks) < 2 or any(look.images or not look.folders for look in looks.values()):
        return
    names = list(looks)
    inner = [_look(_inner(base / name, [], stop_at_splits=False)).folders for name in names]
    if len(inner[0]) > 1 and all(folders == inner[0] for folders in inner):
        raise UserError(
            f"the folders {some_of(names)} in {base} all hold the same folders ({some_of(inner[0])}): if they are "
            f"splits, name them: --split {' '.join(names)}; if they are classes, say so in a table: csv:FILE"
        )


def _union(classes: Mapping[str, Mapping[str, str]], base: Path) -> list[str]:
    """All classes, sorted; what cannot be one list is refused."""
    every = sorted({name for found in classes.values() for name in found})
    for split, found in classes.items():
        others = {name for other, names in classes.items() if other != split for name in names}
        if others and not others & set(found):
            raise UserError(
                f"splits of {base} have no class in common: {split!r} has the folders {some_of(sorted(found))}, "
                f"the others {some_of(sorted(others))}: to do without it, name the other splits: --split NAME"
            )
        alike = {alike_name(name): name for name in others - set(found)}
        for name in sorted(set(found) - others):
            if (other := alike.get(alike_name(name))) is not None:
                raise UserError(
                    f"the split {split!r} of {base} calls a class {name!r}, another {other!r}: give both one name"
                )
    for name in every:
        if not _is_text(name):
            raise UserError(f"class folder {name!r} in {base} has a name that is not valid UTF-8: rename it")
        if name.lower() in _PARTS or (len(every) == 1 and split_of(name)):
            beside = [other for other in every if other != name]
            raise UserError(
                f"the folder {name!r} in {base} does not look like a class"
                + (f" (beside it: {some_of(beside)})" if beside else ", and there is no other")
                + f": expected {base}/CLASS/IMAGE; if it is one, rename it, or write a table: csv:FILE"
            )
    return every


def alike_name(name: str) -> str:
    """Equal for names that differ in case or in the form of their letters only."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _class_folders(folder: Path, classes: Sequence[str], places: Mapping[str, str], left_out: LeftOut) -> FileSplit:
    names: list[str] = []
    keys: list[list[str]] = []
    labels: list[int] = []
    states: list[tuple[int, int]] = []
    refused: dict[int, str] = {}
    for label, name in enumerate(classes):
        if name not in places:
            continue
        place = places[name]
        for found in sorted(find_images(folder / place, place, left_out)):
            if found.refused is not None:
                refused[len(names)] = found.refused
            names.append(found.path)
            keys.append([name, *os.path.splitext(found.path[len(place) + 1 :])[0].split("/")])
            labels.append(label)
            states.append((found.size, found.time))
    return FileSplit(str(folder), names, unique_keys(keys), labels, states, refused)


def _check_filled(base: Path, classes: Sequence[str], made: Mapping[str, Split]) -> list[str]:
    """Refuse classes without images; note those that a split lacks."""
    counts = {name: np.bincount(split.labels, minlength=len(classes)) for name, split in made.items()}
    total = np.stack(list(counts.values())).sum(0)
    empty = [name for name, count in zip(classes, total, strict=True) if not count]
    if empty:
        raise UserError(
            f"class folder {empty[0]!r} in {base} holds no image"
            + (f", nor do {len(empty) - 1} others" if len(empty) > 1 else "")
            + f": remove it, or add files that end in .{', .'.join(IMAGE_EXTENSIONS[:5])}, ..."
        )
    notes = []
    if len(classes) == 1:
        notes.append(f"there is one class only, {classes[0]!r}: nothing can be told apart")
    for split, count in counts.items():
        lacking = [name for name, n in zip(classes, count, strict=True) if not n]
        if lacking:
            elsewhere = int(total[count == 0].sum())
            of = f"{len(lacking):,} of the {len(classes):,} classes"
            notes.append(
                f"split {split!r} has no image of {of} ({some_of(lacking)}; "
                f"{elsewhere:,} images in the other splits): labels are numbered over the classes of all splits"
            )
    return notes
