"""Table: one table or figure of a paper, read from its YAML file and checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdstream.errors import UserError
from kdstream.recipe import merge
from kdstream.recipe_file import CLAIMS, RECIPES, SETTINGS, find_recipe, is_table, name_of, read_recipe
from kdstream.registry import nearest
from kdstream.safe_yaml import plain
from kdstream.terminal import quoted
from kdstream.training.tables.order import Order

TRAINED = ("top1", "top5")
"""Measures that a training gives after each of its epochs, in percent."""
_NUMBER = re.compile(r"([+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?)(?:±(\d+(?:\.\d+)?))?")
_KEYS = (
    *("paper", "place", "measure", "unit", "printed", "runs_averaged", "base", "columns", "rows", "cells", "values"),
    *("suspect", "notes", "images", "claims", "keeps", "repeats"),
)
_OF_REPEATED = ("measure", "unit", "printed", "runs_averaged", "base", "images", "columns", "rows", "cells")
"""What a table takes from those that it repeats."""
_OF_HEAD = ("label", "measure", "unit", "note", "of", "coded", "quoted", "less", "mean")
"""What a row or a column says beside its part of a recipe: a column's stands among them, a row's in ``recipe``."""


@dataclass(frozen=True)
class Printed:
    """A value as the paper prints it.

    Attributes:
        text: as it stands there.
        value, std: the numbers; None where there is none (``n/a``, words, no spread).
    """

    text: str
    value: float | None = None
    std: float | None = None

    @classmethod
    def read(cls, text: str) -> Printed:
        """That of a word of the table."""
        found = _NUMBER.fullmatch(text)
        if found is None:
            return cls(text)
        return cls(text, float(found[1].replace(",", "")), None if found[2] is None else float(found[2]))

    @property
    def absent(self) -> bool:
        """Whether the paper says that there is no value."""
        return self.text.lower() in ("n/a", "-")


@dataclass(frozen=True)
class Head:
    """A row or a column.

    Attributes:
        key: by which the file and commands name it.
        label: for people.
        recipe: what it adds to a recipe.
        of: "teacher", "student": that network's own training; None = a student of the teacher.
        coded: with the settings' coded stage; a text is another one.
        quoted: taken from elsewhere, not to be run.
        measure, unit, note: None = the table's; none.
        less, mean: its values are made of other cells': the first less the second of two, or the mean of all. Each is
            a row's key, a column's or both, as ROW:COLUMN; what is left out is the cell's own.
    """

    key: str
    label: str
    recipe: dict[str, Any] = field(default_factory=dict)
    of: str | None = None
    coded: bool | str = False
    quoted: bool = False
    measure: str | None = None
    unit: str | None = None
    note: str | None = None
    less: tuple[str, ...] = ()
    mean: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suspect:
    """Something printed that is hardly right.

    Attributes:
        row, column: where; None = all of them.
        says: why.
    """

    row: str | None
    column: str | None
    says: str


@dataclass(frozen=True)
class Table:
    """A table or figure.

    Attributes:
        name: by which commands find it.
        path: of its file.
        title: the file's first line.
        paper, place: where it stands.
        measure, unit: what its values are.
        printed: which epoch they are of: "best", "last", "unsaid".
        runs_averaged: over how many seeds; None = unsaid.
        base: files that all cells start from.
        columns, rows: by key, in the paper's order.
        cells: (row, column) -> what only this cell adds to a recipe.
        values: (row, column) -> the printed value; nothing where none is printed.
        suspect: what is hardly right.
        notes: remarks.
        images: the split over which the paper measures answers: "train" or "val".
        claims: what it shall show, where it is no table of a paper's but the trial of a claim.
        keeps: settings that a command line cannot replace here, by dotted name.
        repeated: (row, column) of the values that another table has already, of which this one prints more: the spread.
    """

    name: str
    path: Path
    title: str
    paper: str
    place: str
    measure: str
    unit: str
    printed: str
    runs_averaged: int | None
    base: list[str]
    columns: dict[str, Head]
    rows: dict[str, Head]
    cells: dict[tuple[str, str], dict[str, Any]]
    values: dict[tuple[str, str], Printed]
    suspect: list[Suspect]
    notes: list[str]
    images: str = "val"
    claims: list[Order] = field(default_factory=list)
    keeps: list[str] = field(default_factory=list)
    repeated: frozenset[tuple[str, str]] = frozenset()

    @property
    def called(self) -> str:
        """How a command names it: kdstream's by name, others by their file."""
        return self.name if RECIPES in self.path.parents else str(self.path)

    @property
    def is_figure(self) -> bool:
        """Whether it is drawn, so that a cell without a printed value may be one all the same."""
        return self.place.lower().startswith("fig") or not self.values

    def measure_of(self, row: str, column: str) -> str:
        """What a cell's value is: as its row says, or else its column."""
        return self.rows[row].measure or self.columns[column].measure or self.measure

    def unit_of(self, row: str, column: str) -> str:
        """Its unit; empty where there is none."""
        return self.rows[row].unit or self.columns[column].unit or self.unit

    def made_of(self, row: str, column: str) -> tuple[str, list[tuple[str, str]]] | None:
        """Of which other cells (row, column) a cell's value is made, and how: "less" or "mean"; None: of none."""
        for head, mine in ((self.rows[row], self.rows), (self.columns[column], self.columns)):
            for how, places in (("less", head.less), ("mean", head.mean)):
                if places:
                    split = [_other_cell(place, mine, self.rows, self.columns, self.name) for place in places]
                    return how, [(own_row or row, own_column or column) for own_row, own_column in split]
        return None

    def doubts(self, row: str, column: str) -> list[str]:
        """What is hardly right about a cell."""
        return [one.says for one in self.suspect if one.row in (None, row) and one.column in (None, column)]


def known_tables() -> list[str]:
    """The names of the tables that come with kdstream."""
    paths = sorted(RECIPES.glob("*/*.yaml"), key=lambda path: [int(s) if s.isdigit() else s for s in _pieces(path)])
    others = (SETTINGS, CLAIMS)
    return [name_of(path) for path in paths if path.parent not in others and is_table(read_recipe(path))]


def known_claims() -> list[str]:
    """The names of the claims that come with kdstream."""
    return sorted(name_of(path) for path in CLAIMS.glob("*.yaml"))


def _pieces(path: Path) -> list[str]:
    return [path.parent.name, *re.split(r"(\d+)", path.stem)]


def load_table(name: str) -> Table:
    """A table by its file or by the name of one of kdstream's.

    Raises:
        UserError: no such file, one that holds no table, the first mistake in it.
    """
    path = find_recipe(name)
    settings = read_recipe(path)
    if not is_table(settings):
        raise UserError(f"{quoted(name)} is a recipe, no table: kdstream train runs it; kdstream tables lists tables")
    first = path.read_text(encoding="utf-8-sig").partition("\n")[0]
    title = first.lstrip("# ").strip() if first.startswith("#") else ""
    return make_table(settings, name_of(path), path, title)


def make_table(settings: Mapping[str, Any], name: str, path: Path, title: str = "") -> Table:
    """A checked table.

    Args:
        settings: as YAML gives them.
        name: by which commands find it; names it in messages.
        path: of its file, beside which ``base`` is looked for.
        title: what it shows.

    Raises:
        UserError: the first thing that is wrong.
    """
    what = f"table {name}"
    settings = plain(settings, what)
    _check_keys(settings, _KEYS, what)
    settings, known = _with_repeated(settings, what)
    for key in ("paper", "place", "measure"):
        if not isinstance(settings.get(key), str) or not settings[key].strip():
            raise UserError(f"{what}: {key} is missing: it is a text")
    printed = settings.get("printed", "unsaid")
    if printed not in ("best", "last", "unsaid"):
        raise UserError(f"{what}: printed: it is best, last or unsaid; it is {quoted(str(printed))}")
    averaged = settings.get("runs_averaged")
    if averaged is not None and (isinstance(averaged, bool) or not isinstance(averaged, int) or averaged < 1):
        raise UserError(f"{what}: runs_averaged: it is a whole number from 1 on; it is {averaged!r}")
    columns = {key: _head(key, one, f"{what}: columns", True) for key, one in _group(settings, "columns", what).items()}
    rows = {key: _head(key, one, f"{what}: rows", False) for key, one in _group(settings, "rows", what).items()}
    if not columns or not rows:
        raise UserError(f"{what}: it needs columns and rows")
    base = settings.get("base") or []
    images = settings.get("images", "val")
    if images not in ("train", "val"):
        raise UserError(f"{what}: images: it is train or val; it is {quoted(str(images))}")
    for heads in (rows, columns):
        for head in heads.values():
            for place in (*head.less, *head.mean):
                if _other_cell(place, heads, rows, columns, f"{what}: {head.key}") in (
                    (head.key, None),
                    (None, head.key),
                ):
                    raise UserError(f"{what}: {head.key}: its values cannot be made of themselves")
    values = _values(settings.get("values"), rows, columns, f"{what}: values")
    repeated = _repeated(values, known, f"{what}: values")
    return Table(
        name=name,
        path=path,
        title=title,
        paper=settings["paper"],
        place=settings["place"],
        measure=settings["measure"],
        unit=_text(settings, "unit", what) or "",
        printed=printed,
        runs_averaged=averaged,
        base=[base] if isinstance(base, str) else base,
        columns=columns,
        rows=rows,
        cells=_cells(_group(settings, "cells", what), rows, columns, f"{what}: cells"),
        values={**values, **repeated},
        repeated=frozenset(repeated),
        suspect=_suspect(settings.get("suspect"), rows, columns, f"{what}: suspect"),
        notes=_texts(settings.get("notes"), f"{what}: notes"),
        images=images,
        keeps=_texts(settings.get("keeps"), f"{what}: keeps"),
        claims=_claims(settings.get("claims"), rows, f"{what}: claims"),
    )


def _with_repeated(settings: Mapping[str, Any], what: str) -> tuple[Mapping[str, Any], dict[tuple[str, str], Printed]]:
    """The settings of a table that repeats others, with all that they say of the rows whose values it has; and their
    values. Any other table's as they are."""
    together: dict[str, Any] = {}
    known: dict[tuple[str, str], Printed] = {}
    for name in _texts(settings.get("repeats"), f"{what}: repeats"):
        try:
            path = find_recipe(name)
            other = read_recipe(path)
            known |= make_table(other, name, path).values
        except UserError as error:
            raise UserError(f"{what}: repeats: {error}") from None
        if "repeats" in other:
            raise UserError(f"{what}: repeats: {quoted(name)} repeats others: name those")
        together = merge(together, {key: value for key, value in other.items() if key in _OF_REPEATED})
    if together:
        text = settings.get("values")
        named = {line.split()[0] for line in text.splitlines() if line.strip()} if isinstance(text, str) else set()
        for key in ("rows", "cells"):
            together[key] = {row: value for row, value in together.get(key, {}).items() if row in named}
        settings = merge(together, settings)
    return settings, known


def _repeated(
    values: Mapping[tuple[str, str], Printed], known: Mapping[tuple[str, str], Printed], what: str
) -> dict[tuple[str, str], Printed]:
    """Of values, those that another table has: ``=``, or a spread alone."""
    found = {}
    for (row, column), printed in values.items():
        spread = re.fullmatch(r"=|(±\d+(?:\.\d+)?)", printed.text)
        if spread is None:
            continue
        if (row, column) not in known:
            raise UserError(f"{what}: {printed.text} at {column}:{row}, and no table that it repeats has that value")
        found[row, column] = Printed.read(known[row, column].text + (spread[1] or ""))
    return found


def _check_keys(settings: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    for key in settings:
        if key not in known:
            raise UserError(f"{what}: unknown key {quoted(key)}: {nearest(key, known)}")


def _group(settings: Mapping[str, Any], key: str, what: str) -> dict[str, Any]:
    group = settings.get(key)
    if group is None:
        return {}
    if not isinstance(group, dict):
        raise UserError(f"{what}: {key}: it is a group, name by name")
    return group


def _text(settings: Mapping[str, Any], key: str, what: str) -> str | None:
    value = settings.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{what}: {key}: it is a text; it is {value!r}")
    return value


def _head(key: str, settings: Any, what: str, column: bool) -> Head:
    what = f"{what}.{key}"
    if re.search(r"\s", key) or key in (".", ""):
        raise UserError(f"{what}: a key has no blanks, and is not '.'")
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise UserError(f"{what}: it is a group; it is {quoted(str(settings))}")
    if column:
        recipe = {name: value for name, value in settings.items() if name not in _OF_HEAD}
    else:
        _check_keys(settings, (*_OF_HEAD, "recipe"), what)
        recipe = _group(settings, "recipe", what)
    of, coded, from_elsewhere = settings.get("of"), settings.get("coded", False), settings.get("quoted", False)
    if of not in (None, "teacher", "student"):
        raise UserError(f"{what}: of: it is teacher or student; it is {quoted(str(of))}")
    if not isinstance(coded, bool | str):
        raise UserError(f"{what}: coded: it is true, or the text of a coded stage; it is {coded!r}")
    if not isinstance(from_elsewhere, bool):
        raise UserError(f"{what}: quoted: it is true or false; it is {from_elsewhere!r}")
    less, mean = (_places(settings, name, what) for name in ("less", "mean"))
    if (less and mean) or len(less) not in (0, 2):
        raise UserError(f"{what}: less: it names two cells, as [cmkd, kd], and a mean is another thing")
    label, measure, unit, note = (_text(settings, name, what) for name in ("label", "measure", "unit", "note"))
    return Head(key, label or key, recipe, of, coded, from_elsewhere, measure, unit, note, less, mean)


def _places(settings: Mapping[str, Any], key: str, what: str) -> tuple[str, ...]:
    places = settings.get(key) or []
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise UserError(f"{what}: {key}: it is a list of keys of rows and columns, as [cmkd, kd]")
    return tuple(places)


def _cells(
    cells: Mapping[str, Any], rows: Mapping[str, Head], columns: Mapping[str, Head], what: str
) -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for row, line in cells.items():
        _known(row, rows, f"{what}: row")
        if not isinstance(line, dict):
            raise UserError(f"{what}.{row}: it is a group, column by column")
        for column, recipe in line.items():
            _known(column, columns, f"{what}.{row}: column")
            if not isinstance(recipe, dict):
                raise UserError(f"{what}.{row}.{column}: it is a part of a recipe")
            found[row, column] = recipe
    return found


def _values(
    text: Any, rows: Mapping[str, Head], columns: Mapping[str, Head], what: str
) -> dict[tuple[str, str], Printed]:
    """The printed values: a line a row, a word a column, ``.`` where the paper has none; of a table that repeats others
    ``=`` where they have the same, a spread alone where this one prints it besides."""
    if text is None:
        return {}
    if not isinstance(text, str):
        raise UserError(f"{what}: it is a text of several lines, after 'values: |'")
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or lines[0][0] != ".":
        raise UserError(f"{what}: the first line is '.' and the columns' keys")
    keys = lines[0][1:]
    for key in keys:
        _known(key, columns, f"{what}: column")
    if sorted(keys) != sorted(columns):
        lacking = [key for key in columns if key not in keys]
        said = f"{', '.join(lacking)} is missing" if lacking else "a column stands there twice"
        raise UserError(f"{what}: first line: {said}")
    found: dict[tuple[str, str], Printed] = {}
    seen: list[str] = []
    for row, *words in lines[1:]:
        _known(row, rows, f"{what}: row")
        if row in seen:
            raise UserError(f"{what}: row {row} stands there twice")
        if len(words) != len(keys):
            raise UserError(f"{what}: row {row} has {len(words)} values for {len(keys)} columns")
        seen.append(row)
        found |= {(row, key): Printed.read(word) for key, word in zip(keys, words, strict=True) if word != "."}
    if lacking := [row for row in rows if row not in seen]:
        raise UserError(f"{what}: row {lacking[0]} is missing")
    return found


def _known(key: str, known: Iterable[str], what: str) -> None:
    if key not in known:
        raise UserError(f"{what} {quoted(key)} is unknown: {nearest(key, known)}")


def _suspect(given: Any, rows: Mapping[str, Head], columns: Mapping[str, Head], what: str) -> list[Suspect]:
    """What is hardly right; ``cell`` is ROW:COLUMN, a row, a column, or left out."""
    given = [] if given is None else given
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise UserError(f"{what}: it is a list of groups with cell and says")
    found = []
    for one in given:
        _check_keys(one, ("cell", "says"), what)
        says, cell = _text(one, "says", what), _text(one, "cell", what)
        if not says:
            raise UserError(f"{what}: says is missing")
        row, column = (None, None) if cell is None else split_cell(cell, rows, columns, what, part=True)
        found.append(Suspect(row, column, says))
    return found


def _other_cell(
    text: str, mine: Mapping[str, Head], rows: Mapping[str, Head], columns: Mapping[str, Head], what: str
) -> tuple[str | None, str | None]:
    """As :func:`split_cell` of a part; a key that rows and columns both have is of ``mine``."""
    if text in mine and ":" not in text:
        return (text, None) if mine is rows else (None, text)
    return split_cell(text, rows, columns, what, part=True)


def _claims(given: Any, rows: Mapping[str, Head], what: str) -> list[Order]:
    """What the rows shall show: groups with order, and measure and printed where there is something to say."""
    given = [] if given is None else given
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise UserError(f"{what}: it is a list of groups with order, measure and printed")
    found = []
    for one in given:
        _check_keys(one, ("order", "measure", "printed"), what)
        order, measure, printed = (_text(one, key, what) for key in ("order", "measure", "printed"))
        if not order:
            raise UserError(f"{what}: order is missing")
        found.append(Order.read(order, rows, what, measure, printed or ""))
    return found


def split_cell(
    text: str, rows: Iterable[str], columns: Iterable[str], what: str, part: bool = False
) -> tuple[str | None, str | None]:
    """The row and the column of ``ROW:COLUMN`` or ``COLUMN:ROW``; a column's key may hold a colon itself.

    Args:
        text: what is to be split.
        rows, columns: the keys.
        what: names the place in messages.
        part: a row or a column alone is right, too; the other one is None.

    Raises:
        UserError: there is no such cell.
    """
    rows, columns = set(rows), set(columns)
    for place in (i for i, char in enumerate(text) if char == ":"):
        first, second = text[:place], text[place + 1 :]
        if first in rows and second in columns:
            return first, second
        if first in columns and second in rows:
            return second, first
    if part and text in rows:
        return text, None
    if part and text in columns:
        return None, text
    known = [f"{column}:{row}" for row in rows for column in columns]
    raise UserError(f"{what}: no cell {quoted(text)}: {nearest(text, known)}")


def _texts(given: Any, what: str) -> list[str]:
    given = [given] if isinstance(given, str) else given or []
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise UserError(f"{what}: it is a list of texts")
    return given
