"""What data sets with lists of their own have in common: files that a list names, and lists that are read with care."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdstream.convert.image_listing import found_image
from kdstream.convert.split import FileSplit, unique_keys
from kdstream.errors import UserError


def folder_of(kind: str, place: str, inside: Sequence[str], wanted: Sequence[str]) -> Path:
    """The folder of a data set: the one that is named, or the folder in it that the archive unpacks to.

    Args:
        kind: the source's name, for messages.
        place: what the user named.
        inside: names of folders within it that may be meant.
        wanted: files or folders that it must hold.

    Raises:
        UserError: none of these folders holds them all.
    """
    if not place:
        raise UserError(f"source {kind!r} needs a folder: {kind}:DIR")
    root = Path(os.path.abspath(os.path.expanduser(place)))
    if not root.is_dir():
        raise UserError(f"source folder {root} {'is a file' if root.exists() else 'does not exist'}")
    places = [root, *(root / name for name in inside)]
    for folder in places:
        if all((folder / name).exists() for name in wanted):
            return folder
    lacking = next(name for name in wanted if not (root / name).exists())
    raise UserError(f"{kind}: {root} has no {lacking}: name the folder that holds {', '.join(wanted)}")


def rows(file: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """The lines of a list of words: number of the line, its ``columns`` words (the last takes what follows).

    Raises:
        UserError: a line of fewer words, or a file that is no text.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                words = line.strip().split(maxsplit=columns - 1)
                if len(words) != columns:
                    raise UserError(f"{file}, line {number}: {len(words)} words instead of {columns}")
                yield number, words
    except UnicodeDecodeError:
        raise UserError(f"{file} is no text") from None


def number(file: Path, line: int, word: str, most: int | None = None) -> int:
    """A whole number from 1 of a list.

    Raises:
        UserError: another word, or a number above ``most``.
    """
    if not (word.isascii() and word.isdigit() and int(word) >= 1) or (most is not None and int(word) > most):
        raise UserError(f"{file}, line {line}: {word!r} is no number from 1{f' to {most}' if most else ''}")
    return int(word)


def named_files(root: Path, names: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> FileSplit:
    """A split of files that a list names, relative to ``root``.

    Raises:
        UserError: a file is missing.
    """
    states, refused = [], {}
    for i, name in enumerate(names):
        place = os.path.join(root, name)
        try:
            found = found_image(name, place, os.stat(place))
        except OSError as error:
            missing = sum(not os.path.exists(os.path.join(root, other)) for other in names[i:])
            raise UserError(
                f"{place}: {error.strerror or error} ({missing:,} of {len(names):,} files that the list names are "
                "missing): unpack all of the data set"
            ) from None
        if found.refused is not None:
            refused[i] = found.refused
        states.append((found.size, found.time))
    keys = unique_keys(
        (classes[label], os.path.splitext(os.path.basename(name))[0]) for name, label in zip(names, labels, strict=True)
    )
    return FileSplit(str(root), names, keys, labels, states, refused)
