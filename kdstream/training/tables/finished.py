"""Finished: which trainings of a table's cells are done, here and in others' folders, and what they reached."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdstream.errors import UserError
from kdstream.recipe import Recipe, make_recipe
from kdstream.safe_yaml import read_yaml
from kdstream.training.folder import RECIPE, RESULT
from kdstream.training.job import each_teacher
from kdstream.training.metrics import read_metrics
from kdstream.training.tables import cells as expanded
from kdstream.training.tables.cells import Cell, seedless
from kdstream.training.teacher_check import TEACHER_FILE, noted_absence

TEACHERS = "teachers"
"""Folder of the trained teachers, beside the cells'."""


@dataclass(frozen=True)
class Done:
    """A finished training.

    Attributes:
        seed: of it.
        folder: where it is.
        last, best: measure -> percent, after the last epoch and after that of the best top-1. Where the recipe counts
            the best network of several (``export_network``), of that one, epoch by epoch.
        epochs, seconds: how long it took; 0 where nothing was trained.
        result: what it left in ``result.json`` (a given teacher's evaluation: in ``teacher.json``).
    """

    seed: int
    folder: Path
    last: dict[str, float]
    best: dict[str, float]
    epochs: int = 0
    seconds: float = 0.0
    result: Mapping[str, Any] = field(default_factory=dict)


class Finished:
    """Looks for finished trainings.

    Args:
        added: folders of other people's runs: of whatever lies in them, what has the settings of a cell counts, where
            ever its data lay (its folder's name must be the same). Where both have a seed, ours counts.
        here: where ours are; None = those of all tables.

    Raises:
        UserError: no such folder.
    """

    def __init__(self, added: Sequence[Path] = (), here: Path | None = None):
        self.here = here or expanded.CELLS
        self._teachers: dict[str, Done] | None = None
        self.added: dict[str, dict[int, Done]] = {}
        for folder in added:
            if not folder.is_dir():
                raise UserError(f"--add {folder}: no such folder")
            for key, done in _found_in(folder):
                self.added.setdefault(key, {}).setdefault(done.seed, done)

    def of(self, cell: Cell) -> dict[int, Done]:
        """Seed -> the finished training of a cell."""
        recipe = cell.recipe
        if recipe is None:
            return {}
        if cell.of_teacher:
            teaching = cell.teaching()
            done = self.given(recipe) if cell.given else None
            if done is None and teaching is not None and not (cell.given and not self._absent(recipe)):
                done = self.teacher(teaching)
            return {} if done is None else {done.seed: done}
        mine: dict[int, Done] = {}
        prefix = Path(str(recipe.out)).name.rpartition("-seed")[0]
        for folder in sorted(self.here.glob(f"{prefix}-seed*")):
            seed = folder.name.rpartition("-seed")[2]
            if not seed.isdigit() or _fingerprint(folder) not in _fingerprints(cell.with_seed(int(seed))):
                continue
            if (done := read_done(folder, int(seed), recipe.export_network == "best")) is not None:
                mine[int(seed)] = done
        return {**self.added.get(_placeless(recipe), {}), **mine}

    def teacher(self, teaching: Recipe) -> Done | None:
        """The finished training of a teacher; of several seeds the best one, when all are finished."""
        each = each_teacher(teaching)
        found = [self._one_teacher(one, len(each) > 1) for one in each]
        done = [one for one in found if one is not None]
        if len(done) < len(each):
            return None
        return max(done, key=lambda one: float(one.result["top1"]))  # the first of equal ones, as a job takes it

    def _one_teacher(self, teaching: Recipe, of_several: bool) -> Done | None:
        """The finished training of one; somebody else's counts by whatever seed where one is all that is asked."""
        if self._teachers is None:
            self._teachers = {}
            for path in self.here.glob(f"{TEACHERS}/*/{RESULT}"):
                if (done := read_done(path.parent, 0)) is not None:
                    self._teachers[_fingerprint(path.parent)] = done
        found = next(filter(None, map(self._teachers.get, _fingerprints(teaching))), None)
        if found is not None:
            return replace(found, seed=teaching.seed)
        theirs = self.added.get(_placeless(teaching), {})
        return theirs.get(teaching.seed) or (None if of_several else next(iter(theirs.values()), None))

    def _absent(self, recipe: Recipe) -> bool:
        """Whether published weights could not be had when the teacher's job ran."""
        teacher = recipe.teacher
        return teacher is not None and noted_absence(Path(str(recipe.out)), str(teacher.weights)) is not None

    def training(self, recipe: Recipe) -> Done | None:
        """That of a recipe, in its own folder."""
        folder = recipe.folder()
        return read_done(folder, recipe.seed) if _fingerprint(folder) in _fingerprints(recipe) else None

    def given(self, recipe: Recipe) -> Done | None:
        """What was measured of a teacher that was trained elsewhere."""
        folder = Path(str(recipe.out))
        found = _json(folder / TEACHER_FILE)
        values = {key: float(found[key]) for key in ("top1", "top5") if isinstance(found.get(key), int | float)}
        return Done(recipe.seed, folder, values, values, result=found) if values else None


def read_done(folder: Path, seed: int, best_network: bool = False) -> Done | None:
    """What the folder of a training tells of it; None where it is not finished. ``best_network``: of several networks,
    the one that is the best after an epoch counts."""
    result = _json(folder / RESULT)
    if not isinstance(result.get("top1"), int | float):
        return None
    rows = [row for row in read_metrics(folder) if row.get("phase") == "main" and row.get("val/top1") is not None]
    name = str(result.get("network", "student"))
    prefix = _prefix(name)
    names = list(result.get("networks") or {}) if best_network else []
    last: dict[str, float] = {key: float(result[key]) for key in ("top1", "top5") if key in result}
    best = {"top1": float(result.get("best_top1", result["top1"]))}
    if rows and f"{prefix}/top1" in rows[-1]:
        first = max(rows, key=lambda row: row.get(f"{prefix}/top1", -1.0))
        last, best = (_measures(row, prefix) for row in (rows[-1], first))
        if names:
            each = [max((_measures(row, _prefix(name)) for name in names), key=_top1) for row in rows]
            last, best = each[-1], max(each, key=_top1)
    return Done(seed, folder, last, best, int(result.get("epochs", 0)), float(result.get("seconds", 0.0)), result)


def _prefix(network: str) -> str:
    return "val" if network == "student" else f"val/{network}"


def _top1(measures: Mapping[str, float]) -> float:
    return measures.get("top1", -1.0)


def _fingerprint(folder: Path) -> str:
    """Of the recipe, as the result in a folder has it; data and teacher follow there."""
    return str(_json(folder / RESULT).get("fingerprint"))[:16]


def _fingerprints(recipe: Recipe) -> list[str]:
    """What a recipe's may be: a precision that it leaves open is the launcher's."""
    open_ones = [] if recipe.precision is not None else ["bf16", "fp16"]
    others = [recipe.model_copy(update={"precision": one}) for one in open_ones]
    return [one.fingerprint() for one in (recipe, *others)]


def _measures(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {key: float(row[f"{prefix}/{key}"]) for key in ("top1", "top5") if row.get(f"{prefix}/{key}") is not None}


def _found_in(folder: Path) -> Iterable[tuple[str, Done]]:
    """Every finished training below a folder, with what its recipe is known by wherever the data lies."""
    for path in sorted(folder.rglob(RESULT)):
        try:
            settings = read_yaml(path.parent / RECIPE)
            recipe = make_recipe(settings, str(path.parent / RECIPE))
            done = read_done(path.parent, recipe.seed, recipe.export_network == "best")
        except (UserError, TypeError):  # some other program's result.json
            continue
        if done is not None:
            yield _placeless(recipe), done


def _placeless(recipe: Recipe) -> str:
    """What is the same for a training wherever its data lies, by whatever seed."""
    data = recipe.data.model_copy(update={"path": Path(recipe.data.path).name, "source": None})
    return seedless(recipe.model_copy(update={"data": data}))


def _json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where it is missing, or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
