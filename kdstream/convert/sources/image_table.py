"""csv: a table of paths, labels and splits, as spreadsheets and pandas write it."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdstream.convert.image_listing import Found, found_image, is_image_name
from kdstream.convert.sources.image_folders import alike_name, some_of
from kdstream.convert.split import FileSplit, Source, Split, unique_keys
from kdstream.convert.split_names import split_of
from kdstream.errors import UserError

# fmt: off
_HEADERS = {
    "path": {
        "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "imagepath",
        "image_file", "image_name", "imagename", "img", "img_path", "img_name", "relpath", "id", "image_id", "name",
    },
    "label": {
        "label", "labels", "class", "category", "target", "class_name", "classname", "class_id", "class_label",
        "label_name", "label_id", "category_id", "category_name", "species", "breed", "y",
    },
    "split": {"split", "set", "subset", "partition", "phase"},
}
# fmt: on
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LARGEST = 999_999
_MISSING = ("nan", "<na>", "nat")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str
    split: str


def csv_table(place: str, splits: Sequence[str] | None) -> Source:
    """A CSV file with the columns path, label and, optionally, split. Paths are relative to the file's folder.

    A header is needed for another order of the columns, or for a split. Labels that all are whole numbers, 0 or more,
    are class numbers, also as 3.0; others are names, numbered in sorted order. Without a column split there is one,
    "train".

    Raises:
        UserError: a file that is no such table; a missing label; the line is named.
    """
    if not place:
        raise UserError("source 'csv' needs a file: csv:FILE")
    file = Path(os.path.abspath(os.path.expanduser(place)))
    notes: list[str] = []
    table = _read(file, splits, notes)
    classes, numbers = _classes(file, [row for part in table.values() for row in part], notes)
    made: dict[str, Split] = {}
    for split, part in table.items():
        found = [_file(file, row, table) for row in part]
        keys = unique_keys(
            (classes[numbers[row.label]], os.path.splitext(os.path.basename(row.path))[0]) for row in part
        )
        refused = {i: one.refused for i, one in enumerate(found) if one.refused is not None}
        labels = [numbers[row.label] for row in part]
        states = [(one.size, one.time) for one in found]
        made[split] = FileSplit(str(file.parent), [row.path for row in part], keys, labels, states, refused)
    notes += _lacking(classes, made)
    return Source(f"csv:{file}", classes, made, notes, None)


def _read(file: Path, splits: Sequence[str] | None, notes: list[str]) -> dict[str, list[_Row]]:
    """Rows of each split."""
    columns, rows = _columns(file, notes)
    if not rows:
        raise UserError(f"{file} has no rows")
    names = list(splits or ["train"])
    if "split" not in columns and len(names) > 1:
        raise UserError(f"{file} has no column 'split', it makes one split, not {len(names)}")
    table: dict[str, list[_Row]] = {}
    said: dict[str, str] = {}
    labelled: dict[str, tuple[str, int]] = {}
    twice = 0
    for line, cells in rows:
        if len(cells) <= max(columns.values()):
            raise UserError(f"{file}, line {line}: {len(cells)} columns instead of {max(columns.values()) + 1}")
        path, label = cells[columns["path"]].strip(), cells[columns["label"]].strip()
        split = cells[columns["split"]].strip() if "split" in columns else names[0]
        for what, value in (("path", path), ("label", label), ("split", split)):
            if not value:
                todo = ": write its class, or remove the row" if what == "label" else ""
                raise UserError(f"{file}, line {line}: the {what} is empty{todo}")
        if "split" in columns and split not in (splits or ()) and (known := split_of(split)):
            if (other := said.setdefault(known, split)) != split and other.lower() != split.lower():
                raise UserError(
                    f"{file}, line {line}: split {split!r}, and {other!r} before it, both say {known!r}: use one name"
                )
            split = known
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise UserError(f"{file}, line {line}: split {split!r} is no name (letters, digits, _)")
        before = labelled.setdefault(path, (label, line))
        twice += before[0] != label
        table.setdefault(split, []).append(_Row(line, path, label, split))
    notes += [f"the split {said[known]!r} is read as {known!r}" for known in said if said[known] != known]
    if twice:
        notes.append(f"{twice:,} rows give a file another label than an earlier row does")
    return table


def _columns(file: Path, notes: list[str]) -> tuple[dict[str, int], list[tuple[int, list[str]]]]:
    """Position of each column, and the rows with their line numbers."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")  # what spreadsheets call Unicode text
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
        first = next((line for line in text.splitlines() if line.strip()), "")
        if match := re.fullmatch(r"sep=(.)", first.strip()):  # written for Excel
            delimiter, text = match[1], text.replace(first, "", 1)
        else:
            delimiter = _delimiter(first)
        reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, skipinitialspace=True)
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no CSV file in UTF-8: {error}") from error
    if delimiter != ",":
        notes.append(f"columns of {file.name} are separated by {_DELIMITERS.get(delimiter, repr(delimiter))}")
    if not rows:
        return {}, []
    if (columns := _header(file, rows[0][1], notes)) is not None:
        return columns, rows[1:]
    if len(rows[0][1]) > 2:
        raise UserError(
            f"{file}, line {rows[0][0]}: {len(rows[0][1])} columns ({some_of(rows[0][1])}), but no header: a header "
            "must name the columns path and label, and split if there is one"
        )
    return {"path": 0, "label": 1}, rows


def _delimiter(first: str) -> str:
    """The character between the columns, from the first line that is not empty."""
    parts = {delimiter: next(csv.reader([first], delimiter=delimiter), []) for delimiter in _DELIMITERS}
    for delimiter, cells in parts.items():
        if _known(cells).keys() >= {"path", "label"}:
            return delimiter
    for delimiter, cells in parts.items():
        if len(cells) > 1 and any(is_image_name(cell.strip()) for cell in cells):
            return delimiter
    return ","


def _known(cells: Sequence[str]) -> dict[str, list[int]]:
    """What each column of a header may be: path, label, split -> positions."""
    found: dict[str, list[int]] = {}
    plain = [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in cells]
    for what, names in _HEADERS.items():
        exact = [i for i, cell in enumerate(plain) if cell == what]
        places = exact or [i for i, cell in enumerate(plain) if cell in names]
        if places:
            found[what] = places
    return found


def _header(file: Path, cells: Sequence[str], notes: list[str]) -> dict[str, int] | None:
    """Position of each column where the first row is a header."""
    known = _known(cells)
    if not known.keys() >= {"path", "label"}:
        return None
    for what, places in known.items():
        if len(places) > 1:
            raise UserError(
                f"{file}: the columns {some_of([cells[i] for i in places])} may all be the {what}: call the one that "
                f"is meant {what!r}"
            )
    columns = {what: places[0] for what, places in known.items()}
    other = [f"{cells[i].strip()!r} is the {what}" for what, i in columns.items() if cells[i].strip().lower() != what]
    if other:
        notes.append(f"columns of {file.name}: {', '.join(other)}")
    return columns


def _file(file: Path, row: _Row, table: Mapping[str, list[_Row]]) -> Found:
    where = f"{file}, line {row.line}"
    place = str(file.parent / row.path)
    try:
        state = os.stat(place)
    except (OSError, ValueError) as error:
        hint = ""
        if row is next(iter(table.values()))[0]:
            hint = f"; a header must name the columns path and label (seen: {row.path!r}, {row.label!r})"
        if "\\" in row.path:
            hint += "; write / between folders"
        elif not is_image_name(row.path) and any(os.path.exists(f"{place}.{end}") for end in ("jpg", "jpeg", "png")):
            hint += "; write the extension as well"
        raise UserError(f"{where}: there is no file {place!r}{hint}") from error
    if not is_image_name(row.path) and os.path.isfile(place):
        raise UserError(f"{where}: {row.path!r} does not end in .jpg, .png or another image's extension")
    try:
        return found_image(row.path, place, state)
    except UserError:
        raise UserError(f"{where}: {place!r} is no file") from None


# ---- labels


def _classes(file: Path, rows: Sequence[_Row], notes: list[str]) -> tuple[list[str], dict[str, int]]:
    """Names of the classes, and the number of each label as it is written."""
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(row.label, row.line)
    for label, line in first.items():
        if label.lower() in _MISSING:
            raise UserError(f"{file}, line {line}: the label is missing ({label}): write its class, or remove the row")
    values = {label: _number(label) for label in first}
    names = [label for label, value in values.items() if value is None]
    if names:
        return _by_name(file, first, values, notes)
    for label, line in first.items():
        value = values[label]
        if value is None or value != value or value in (float("inf"), float("-inf")) or value != int(value):
            raise UserError(f"{file}, line {line}: label {label} is no whole number, as a class number has to be")
        if value < 0:
            raise UserError(
                f"{file}, line {line}: label {label} is negative, as images without a label often are marked: remove "
                "such rows, or number the classes from 0"
            )
    numbers = {label: int(value) for label, value in values.items() if value is not None}
    if max(numbers.values()) > _LARGEST:
        notes.append(
            f"labels such as {max(first, key=lambda label: numbers[label])} are too large for class numbers: all are "
            "read as names"
        )
        return _by_name(file, first, values, notes)
    odd = [label for label in first if label != str(numbers[label])]
    if odd:
        notes.append(f"labels are read as class numbers, e.g. {odd[0]} as {numbers[odd[0]]}")
    classes = [str(number) for number in range(max(numbers.values()) + 1)]
    empty = sorted(set(range(len(classes))) - set(numbers.values()))
    if empty:
        notes.append(f"{len(empty):,} of the classes 0..{len(classes) - 1} have no row, e.g. {empty[0]}")
    return classes, numbers


def _number(label: str) -> float | None:
    """The value of a label that is written as a number, in any script's digits."""
    if label.lower().lstrip("+-") in ("inf", "infinity"):
        return float(label)
    return float(label) if _NUMBER.fullmatch(label) else None


def _by_name(
    file: Path, first: Mapping[str, int], values: Mapping[str, float | None], notes: list[str]
) -> tuple[list[str], dict[str, int]]:
    seen: dict[float, str] = {}
    for label, line in first.items():
        value = values[label]
        if value is not None and (other := seen.setdefault(value, label)) != label:
            raise UserError(
                f"{file}, line {line}: label {label}, and {other} in line {first[other]}, are one number, but among "
                "names they would be two classes: write it in one way"
            )
    numbers = {label: value for label, value in values.items() if value is not None}
    if numbers and len(numbers) < len(first):
        word = next(label for label, value in values.items() if value is None)
        notes.append(f"some labels are numbers ({next(iter(numbers))}), some are not ({word}): all are read as names")
        if negative := next((label for label, value in numbers.items() if value < 0), None):
            raise UserError(
                f"{file}, line {first[negative]}: label {negative} among names, as images without a label often are "
                "marked: remove such rows, or give them a name"
            )
    alike: dict[str, str] = {}
    for label in first:
        if (other := alike.setdefault(alike_name(label), label)) != label:
            notes.append(f"classes {other!r} and {label!r} differ in how they are written only: they are kept apart")
    classes = sorted(first)
    return classes, {label: number for number, label in enumerate(classes)}


def _lacking(classes: Sequence[str], made: Mapping[str, Split]) -> list[str]:
    notes = []
    filled = {label for split in made.values() for label in split.labels.tolist()}
    if len(filled) == 1:
        notes.append(f"there is one class only, {classes[next(iter(filled))]!r}: nothing can be told apart")
    for name, split in made.items():
        lacking = sorted(filled - set(split.labels.tolist()))
        if lacking:
            names = some_of([classes[c] for c in lacking])
            notes.append(f"split {name!r} has no image of {len(lacking):,} of the classes ({names})")
    return notes
