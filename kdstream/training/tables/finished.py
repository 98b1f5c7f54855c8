"""Finished: which trainings of a table's cells are done, here and in others' folders, and what they reached."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstream.errors import UserError
from kdstream.recipe import Recipe, make_recipe
from kdstream.safe_yaml import read_yaml
from kdstream.training.folder import RECIPE, RESULT
from kdstream.training.metrics import read_metrics
from kdstream.training.tables import cells as expanded
from kdstream.training.tables.cells import Cell, seedless
from kdstream.training.teacher_check import TEACHER_FILE

TEACHERS = "teachers"
"""Folder of the trained teachers, beside the cells'."""


@dataclass(frozen=True)
class Done:
    """A finished training.

    Attributes:
        seed: of it.
        folder: where it is.
        last, best: measure -> percent, after the last epoch and after that of the best top-1.
        epochs, seconds: how long it took; 0 where nothing was trained.
    """

    seed: int
    folder: Path
    last: dict[str, float]
    best: dict[str, float]
    epochs: int = 0
    seconds: float = 0.0


class Finished:
    """Looks for finished trainings.

    Args:
        added: folders of other people's runs: of whatever lies in them, what has the settings of a cell counts, where
            ever its data lay (its folder's name must be the same). Where both have a seed, ours counts.

    Raises:
        UserError: no such folder.
    """

    def __init__(self, added: Sequence[Path] = ()):
        self.here = expanded.CELLS
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
            done = self.given(recipe) if teaching is None else self.teacher(teaching)
            return {} if done is None else {done.seed: done}
        mine: dict[int, Done] = {}
        prefix = Path(str(recipe.out)).name.rpartition("-seed")[0]
        for folder in sorted(self.here.glob(f"{prefix}-seed*")):
            seed = folder.name.rpartition("-seed")[2]
            if not seed.isdigit() or _fingerprint(folder) not in _fingerprints(cell.with_seed(int(seed))):
                continue
            if (done := read_done(folder, int(seed))) is not None:
                mine[int(seed)] = done
        return {**self.added.get(_placeless(recipe), {}), **mine}

    def teacher(self, teaching: Recipe) -> Done | None:
        """The finished training of a teacher."""
        if self._teachers is None:
            self._teachers = {}
            for path in self.here.glob(f"{TEACHERS}/*/{RESULT}"):
                if (done := read_done(path.parent, 0)) is not None:
                    self._teachers[_fingerprint(path.parent)] = done
        found = next(filter(None, map(self._teachers.get, _fingerprints(teaching))), None)
        return found or next(iter(self.added.get(_placeless(teaching), {}).values()), None)

    def given(self, recipe: Recipe) -> Done | None:
        """What was measured of a teacher that was trained elsewhere."""
        folder = Path(str(recipe.out))
        found = _json(folder / TEACHER_FILE)
        values = {key: float(found[key]) for key in ("top1", "top5") if isinstance(found.get(key), int | float)}
        return Done(recipe.seed, folder, values, values) if values else None


def read_done(folder: Path, seed: int) -> Done | None:
    """What the folder of a training tells of it; None where it is not finished."""
    result = _json(folder / RESULT)
    if not isinstance(result.get("top1"), int | float):
        return None
    rows = [row for row in read_metrics(folder) if row.get("phase") == "main" and row.get("val/top1") is not None]
    name = str(result.get("network", "student"))
    prefix = "val" if name == "student" else f"val/{name}"
    last: dict[str, float] = {key: float(result[key]) for key in ("top1", "top5") if key in result}
    best = {"top1": float(result.get("best_top1", result["top1"]))}
    if rows and f"{prefix}/top1" in rows[-1]:
        first = max(rows, key=lambda row: row.get(f"{prefix}/top1", -1.0))
        last, best = (_measures(row, prefix) for row in (rows[-1], first))
    return Done(seed, folder, last, best, int(result.get("epochs", 0)), float(result.get("seconds", 0.0)))


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
            done = read_done(path.parent, recipe.seed)
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
