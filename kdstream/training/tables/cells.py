"""Cells: a table expanded to ordinary recipes, one a cell and seed; equal recipes share a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstream.addresses import PUBLISHED, is_published
from kdstream.errors import UserError
from kdstream.models import published
from kdstream.models.pretrained import brings_weights
from kdstream.objectives import parse_loss
from kdstream.recipe import Recipe, make_recipe, merge, model_of
from kdstream.recipe_file import apply_overrides, lay, parse_override, read_bases
from kdstream.registry import nearest
from kdstream.stream.language import parse_calls
from kdstream.terminal import quoted
from kdstream.training.job import teacher_recipe
from kdstream.training.tables.table import TRAINED, Printed, Table, split_cell

CELLS = Path("runs/cells")
"""Where the trainings of all tables go."""
TEACHING = (
    *("stream", "eval_stream", "epochs", "batch_size", "seed", "accumulate", "channels_last", "compile", "optimizer"),
    *("schedule", "export"),
)
"""What the settings say of a training, by which a teacher is trained as well. What a row, a column or a cell changes is
for its student: so all cells share their teacher."""
_NOT_HERE = ("runs", "out", "name", "seeds", "seed")


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        table, row, column: where it stands (keys).
        printed: the paper's value; None where none is printed.
        recipe: of its training, with the settings' seed; its ``out`` is where that goes. None where nothing is trained.
        of_teacher: it is the teacher that the recipe trains (or has), and not the student.
        why_not: why nothing is trained, for people.
    """

    table: Table
    row: str
    column: str
    printed: Printed | None
    recipe: Recipe | None
    of_teacher: bool = False
    why_not: str = ""

    @property
    def key(self) -> str:
        """As commands name it."""
        return f"{self.column}:{self.row}"

    @property
    def measure(self) -> str:
        """What its value is."""
        return self.table.measure_of(self.row, self.column)

    def with_seed(self, seed: int) -> Recipe:
        """Its training by another seed, with the same teacher."""
        assert self.recipe is not None
        return with_seed(self.recipe, seed)

    def teaching(self) -> Recipe | None:
        """How its teacher is trained; None where it has none, or a trained one."""
        return None if self.recipe is None else teacher_recipe(self.recipe)

    @property
    def given(self) -> bool:
        """Whether its teacher's weights are given, published ones among them, which training may stand in for."""
        teacher = None if self.recipe is None else self.recipe.teacher
        return teacher is not None and (teacher.weights is not None or teacher.train is None)

    def network(self) -> str:
        """Whose result it is."""
        assert self.recipe is not None
        wanted = self.recipe.teacher if self.of_teacher else self.recipe.student
        assert wanted is not None
        return str(wanted.model or wanted.weights)


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of a cell by another seed, and where it goes."""
    other = recipe.model_copy(update={"seed": seed})
    other.out = str(folder(other))
    other.name = Path(other.out).name
    return other


def folder(recipe: Recipe) -> Path:
    """Where a cell's training goes: named by what it is for people, by all that decides it, and by its seed."""
    teacher = recipe.teacher.model or "given" if recipe.teacher else None
    coded = any(call.name == "coded" for call in parse_calls(recipe.stream))
    losses = [str(value) if name == "preset" else name for name, value in recipe.loss.items()]
    named = [Path(recipe.data.path).name, teacher, recipe.student.model, *losses, "coded" if coded else None]
    readable = re.sub(r"[^\w.+]+", "_", "-".join(filter(None, map(str, filter(None, named))))).strip("_")
    return CELLS / f"{readable[:60]}-{seedless(recipe)[:8]}-seed{recipe.seed}"


def seedless(recipe: Recipe) -> str:
    """What all seeds of a training have in common (hex)."""
    return recipe.model_copy(update={"seed": 0}).fingerprint()


def expand(table: Table, overrides: Sequence[str] = ()) -> list[Cell]:
    """All cells, row by row.

    Args:
        table: the table.
        overrides: ``key=value``, for all cells and their teachers.

    Raises:
        UserError: a cell that gives no recipe, or lacks what it is of; the first one, named.
    """
    for override in overrides:
        keys, _ = parse_override(override)
        if keys[0] in _NOT_HERE:
            raise UserError(f"table {table.name}: {keys[0]}= is not for tables: --seeds says how many seeds")
    made = _Expander(table, overrides)
    return [made.cell(row, column) for row in table.rows for column in table.columns]


class _Expander:
    """What the cells of a table share while they are made."""

    def __init__(self, table: Table, overrides: Sequence[str]):
        self.table = table
        self.overrides = [one for one in overrides if one.partition("=")[0] not in table.keeps]
        self._read: dict[tuple[str, ...], dict[str, Any]] = {}
        self._teaching: dict[tuple[str, ...], dict[str, Any]] = {}

    def cell(self, row: str, column: str) -> Cell:
        """The cell at a row and a column."""
        table = self.table
        printed, line, head = table.values.get((row, column)), table.rows[row], table.columns[column]
        what = f"table {table.name}: {column}:{row}"

        def without(why: str) -> Cell:
            return Cell(table, row, column, printed, None, why_not=why)

        if line.quoted or head.quoted:
            return without("quoted")
        if table.made_of(row, column) is not None:
            return without("made of others")
        if printed is None and not table.is_figure:
            return without("not in the paper")
        if printed is not None and printed.absent:
            return without("no value in the paper")
        parts = [head.recipe, line.recipe, table.cells.get((row, column), {})]
        of = line.of or head.of
        settings, coded, names = self._settings(parts, what)
        if of is None and "loss" not in settings:
            if table.measure_of(row, column) in TRAINED:
                raise UserError(f"{what}: no loss: give it by recipe or cells, or say of: or quoted:")
            return without(f"{table.measure_of(row, column)} is no training's result")
        if of is not None:
            settings = {**settings, "loss": "ce", "assistants": []}
        try:
            settings = self._ready(settings, of, line.coded or head.coded, coded, names, what)
            recipe = make_recipe({**settings, "name": table.name}, what)
        except UserError as error:
            said = str(error)
            raise UserError(said if said.startswith(what) else f"{what}: {said}") from None
        return Cell(table, row, column, printed, with_seed(recipe, recipe.seed), of_teacher=of == "teacher")

    def _settings(
        self, parts: Sequence[Mapping[str, Any]], what: str
    ) -> tuple[dict[str, Any], str | None, tuple[str, ...]]:
        """A cell's settings, the settings' coded stage, and the files that they begin with."""
        names = list(self.table.base)
        for part in parts:
            own = part.get("base") or []
            names += [own] if isinstance(own, str) else own
        settings = self._base(names, what)
        coded = settings.pop("coded", None)
        for part in parts:
            settings = lay(settings, {key: value for key, value in part.items() if key != "base"})
        for key in _NOT_HERE[:-1]:
            if key in settings:
                raise UserError(f"{what}: {key} is not for tables")
        settings = apply_overrides(settings, self.overrides)
        teachers = settings.pop("teachers", "trained")
        if teachers not in ("trained", "published"):
            raise UserError(f"{what}: teachers: they are trained or published; it is {quoted(str(teachers))}")
        if teachers == "published":
            settings = with_published_teacher(settings)
        return settings, coded, tuple(names)

    def _base(self, names: Sequence[str], what: str) -> dict[str, Any]:
        """What those files say together, read once."""
        key = tuple(names)
        if key not in self._read:
            self._read[key] = read_bases(list(names), self.table.path, what)
        return dict(self._read[key])

    def _ready(
        self,
        settings: dict[str, Any],
        of: str | None,
        with_coded: bool | str,
        coded: str | None,
        names: tuple[str, ...],
        what: str,
    ) -> dict[str, Any]:
        """The settings with the teacher as all cells share it, or without one that nobody asks."""
        settings = dict(settings)
        for role in ("teacher", "student"):
            if isinstance(settings.get(role), str):
                settings[role] = model_of(settings[role])
        teacher = settings.get("teacher")
        if of == "teacher":
            if not isinstance(teacher, dict) or not (teacher.get("model") or teacher.get("weights")):
                raise UserError(f"{what}: of: teacher, and no teacher")
            # The student is not trained, and may not tell one table's teacher from another's.
            settings |= {"student": {"model": teacher.get("model") or "resnet8"}, "loss": {"ce": 1}}
        elif of == "student" or not _asks(settings):
            settings["teacher"] = teacher = None
        elif teacher is None:
            raise UserError(f"{what}: its loss looks at a teacher, and there is none")
        if with_coded and of is None and teacher is not None:
            stage = with_coded if isinstance(with_coded, str) else coded
            if stage is None:
                raise UserError(f"{what}: coded: true, and no settings file says coded: which stage that is")
            settings["stream"] = with_coded_stage(settings.get("stream") or "decode | augment(cifar)", stage)
        teacher = settings.get("teacher")
        if isinstance(teacher, dict):
            named = teacher.get("weights")  # published ones may be gone, and then training stands in for them
            given = (named is not None and not is_published(named)) or brings_weights(
                str(teacher.get("model")), teacher.get("options") or {}
            )
            rest = {key: value for key, value in teacher.items() if key != "train"}
            train = None if given else merge(self._training(names, what), teacher.get("train") or {})
            if train is None:  # nor is it chosen among several
                rest.pop("seeds", None)
            settings["teacher"] = {**rest, **({"train": train} if train is not None else {})}
        return settings

    def _training(self, names: tuple[str, ...], what: str) -> dict[str, Any]:
        """What the settings say of a training, complete, for a teacher."""
        if names not in self._teaching:
            settings = apply_overrides(self._base(names, what), self.overrides)
            settings = {key: value for key, value in settings.items() if key in TEACHING}
            made = make_recipe({"data": {"path": "-"}, "student": "resnet8", **settings}, what)
            plain = " | ".join(str(c) for c in parse_calls(made.stream) if c.name not in ("coded", "teacher"))
            self._teaching[names] = made.model_copy(update={"stream": plain}).model_dump(
                mode="json", include=set(TEACHING)
            )
        return self._teaching[names]


def _asks(settings: Mapping[str, Any]) -> bool:
    """Whether a term of the loss, or an assistant, looks at a teacher."""
    loss = settings["loss"]
    return bool(settings.get("assistants")) or parse_loss({loss: 1.0} if isinstance(loss, str) else loss).uses_teacher


def with_published_teacher(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose teacher has the weights that are published of such a network on such data; what trains it stands
    in where they cannot be had. Without any, the settings as they are."""
    teacher, data = settings.get("teacher"), settings.get("data") or {}
    group: Any = model_of(teacher) if isinstance(teacher, str) else teacher
    if not isinstance(group, dict) or group.get("weights") is not None or not isinstance(data, dict):
        return dict(settings)
    options: dict[str, Any] = group.get("options") or {}
    for place in (data.get("source"), Path(str(data.get("path"))).name):
        name = f"{group.get('model')}@{place}"
        if name in published.known() and not brings_weights(str(group.get("model")), options):
            return {**settings, "teacher": {**group, "weights": f"{PUBLISHED}{name}"}}
    return dict(settings)


def with_coded_stage(stream: str, stage: str) -> str:
    """A chain with a coded stage before its augmentation: the raw image is compressed, every version cut alike."""
    calls = parse_calls(stream)
    if any(call.name == "coded" for call in calls):
        return stream
    later = [i for i, call in enumerate(calls) if call.name in ("augment", "teacher", "normalize")]
    place = later[0] if later else len(calls)
    return " | ".join(map(str, [*calls[:place], *parse_calls(stage), *calls[place:]]))


# --- choosing


def choose(
    cells: Iterable[Cell], cell: str | None = None, methods: str | None = None, pairs: str | None = None
) -> list[Cell]:
    """Those cells that somebody asks for.

    Args:
        cells: of one table.
        cell: COLUMN:ROW.
        methods: keys of rows, with commas.
        pairs: keys of columns, with commas; without its measure, a pair stands for all of its columns.

    Raises:
        UserError: names that there are none of.
    """
    cells = list(cells)
    if not cells:
        return []
    table = cells[0].table
    if cell is not None:
        row, column = split_cell(cell, table.rows, table.columns, "--cell")
        cells = [one for one in cells if (one.row, one.column) == (row, column)]
    if methods is not None:
        wanted = _listed(methods, table.rows, "--methods")
        cells = [one for one in cells if one.row in wanted]
    if pairs is not None:
        wanted = _listed(pairs, [*table.columns, *(key.partition(":")[0] for key in table.columns)], "--pairs")
        cells = [one for one in cells if one.column in wanted or one.column.partition(":")[0] in wanted]
    return cells


def _listed(text: str, known: Iterable[str], what: str) -> list[str]:
    names, known = text.split(","), list(known)
    for name in names:
        if name not in known:
            raise UserError(f"{what}: no {name!r}: {nearest(name, set(known))}")
    return names


def pick(table: Table, overrides: Sequence[str]) -> tuple[Cell, Recipe]:
    """The one cell that overrides name, by ``cell=COLUMN:ROW`` or else by ``teacher=``, ``student=`` and ``loss=`` (the
    row), and its recipe; ``seed=`` is its student's, other overrides replace settings, ``out=`` the folder.

    Raises:
        UserError: none, or several; how to pick one.
    """
    chosen: dict[str, Any] = {}
    rest: list[str] = []
    named = any(override.startswith("cell=") for override in overrides)
    choosing = ("cell", "seed", "out") if named else ("cell", "seed", "out", "teacher", "student", "loss")
    for override in overrides:
        (first, *more), value = parse_override(override)
        if not more and first in choosing:
            chosen[first] = value
        else:
            rest.append(override)
    cells = [one for one in expand(table, rest) if one.recipe is not None]
    if "cell" in chosen:
        cells = choose(cells, cell=str(chosen["cell"]))
    for role in ("teacher", "student"):
        if role in chosen:
            cells = [one for one in cells if _network(table, one, role) == chosen[role]]
    if "loss" in chosen:
        cells = [one for one in cells if chosen["loss"] in (one.row, table.rows[one.row].label)]
    kinds = {(one.recipe.fingerprint(), one.of_teacher): one for one in cells if one.recipe is not None}
    if len(kinds) != 1:
        found = f"{len(kinds) or 'no'} cell{'' if len(kinds) == 1 else 's'} of it"
        columns, rows = (", ".join(list(keys)[:12]) for keys in (table.columns, table.rows))
        raise UserError(
            f"{table.called} is a table, and this names {found}: pick one by cell=COLUMN:ROW, or by teacher=, student= "
            f"and loss=ROW; columns: {columns}; rows: {rows}; kdstream table {table.called} runs them all"
        )
    (cell,) = kinds.values()
    assert cell.recipe is not None
    seed = chosen.get("seed", cell.recipe.seed)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"seed={seed}: it is a whole number")
    recipe = cell.with_seed(seed)
    if "out" in chosen:
        recipe.out = str(chosen["out"])
    return cell, recipe


def _network(table: Table, cell: Cell, role: str) -> str | None:
    """A cell's teacher or student as its column names it, also where its training does without."""
    wanted = table.columns[cell.column].recipe.get(role)
    recipe_part = None if cell.recipe is None else getattr(cell.recipe, role)
    if wanted is None:
        return None if recipe_part is None else recipe_part.model
    group = model_of(wanted) if isinstance(wanted, str) else wanted
    return group.get("model") or group.get("weights")
