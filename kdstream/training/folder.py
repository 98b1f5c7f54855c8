"""The folder of a training: which one it holds, whether that is finished, and that one job at a time is in it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdstream.atomic import reason
from kdstream.data.faults import FAULTS
from kdstream.data.shards import ShardSet
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.lock import alone
from kdstream.recipe import FREE, Recipe
from kdstream.safe_yaml import parse_yaml, read_yaml
from kdstream.training.networks import Teacher
from kdstream.training.own_code import code_mark, own_code

PEERS = "peers"
"""Folder within a run's, for all the networks of a cohort."""
LAST, BEST = "last.pt", "best.pt"
"""The checkpoint that a training continues from, and the weights of its best epoch."""
RECIPE, RESULT = "recipe.yaml", "result.json"
MEASURED = "measured.json"
"""What a report, or the trial of a claim, looked at of a finished training."""
TRACKERS = "trackers.json"
"""In which runs of which trackers the training stands."""
TENSORBOARD = "tensorboard"
"""Folder within a run's, for TensorBoard's event files."""
KEPT = (
    RECIPE,
    "metrics.jsonl",
    "speed.jsonl",
    FAULTS,
    RESULT,
    LAST,
    BEST,
    "student.json",
    "student.safetensors",
    MEASURED,
    TRACKERS,
)
"""The files in a training's folder."""


@dataclass(frozen=True)
class Identity:
    """Which training it is: everything that decides its result.

    Attributes:
        recipe: its settings.
        folder: where it lives.
        fingerprint: of recipe, user's code, data and teacher.
        without_code: the same as it was when the user's code did not count.
    """

    recipe: Recipe
    folder: Path
    fingerprint: str
    without_code: str

    @classmethod
    def of(cls, recipe: Recipe, folder: Path, train: ShardSet, teacher: Teacher | None) -> Identity:
        """That of a training by ``recipe`` on ``train`` with ``teacher``."""
        rest = f"-{train.fingerprint[:16]}" + ("" if teacher is None else f"-{teacher.hash[:16]}")
        own = recipe.fingerprint()
        return cls(recipe, folder, f"{own}{code_mark(recipe)}{rest}", f"{own}{rest}")

    def finished(self) -> dict[str, Any] | None:
        """What ``result.json`` says, where this training is finished.

        Raises:
            UserError: the folder holds another training; a file that cannot be read.
        """
        path = self.folder / RESULT
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {reason(error)}") from error
        except ValueError:  # half of it: from the last checkpoint it is written anew
            return None
        if not isinstance(result, dict) or not isinstance(result.get("top1"), int | float):
            return None
        self.check_same(str(result.get("fingerprint")))
        return result

    def check_same(self, found: str) -> None:
        """That the folder holds this training.

        Raises:
            UserError: it holds another one; which settings differ.
        """
        if found in (self.fingerprint, self.without_code):
            return
        if re.sub(r"\+\w+", "", found) == self.without_code:
            names = ", ".join(own_code(self.recipe))
            raise UserError(
                f"{self.folder} holds a training with other code: {names}, or what it calls, has changed since (or "
                "Python has): choose another out=FOLDER, or --fresh"
            )
        changed: list[str] = []
        try:
            old = read_yaml(self.folder / RECIPE)
            new = parse_yaml(self.recipe.to_yaml(), f"{RECIPE}:")
            changed = _differences(old, new)
        except (UserError, TypeError):  # TypeError: keys that are no text
            pass
        what = f"(different: {', '.join(changed[:4])})" if changed else "(other data or another teacher)"
        raise UserError(
            f"{self.folder} holds a training with other settings {what}: choose another out=FOLDER, or --fresh"
        )


def which_teacher(folder: Path, recipe: Recipe, students: Recipe) -> str | None:
    """Why a job trains a teacher now; None where a kept one serves, whose training says so itself.

    Args:
        folder: where this teacher is kept, or will be.
        recipe: how it is trained.
        students: the recipe that it serves.
    """
    if (folder / RESULT).exists():
        return None
    if (folder / LAST).exists():
        return f"{recipe.name}: its training in {folder} goes on"
    new = parse_yaml(recipe.to_yaml(), f"{RECIPE}:")
    others: list[tuple[list[str], Path]] = []
    for place in sorted(folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*/{RESULT}")):
        with contextlib.suppress(UserError, TypeError):
            others.append((_differences(read_yaml(place.with_name(RECIPE)), new), place.parent))
    why = "none is kept for it"
    if others:
        changed, place = min(others, key=lambda one: len(one[0]))
        why = f"the kept {place.name} differs: {', '.join(changed[:3]) or 'other data or code'}"
    own = _differences(_of_training(recipe), _of_training(students))
    more = f"; teacher -> student: {', '.join(own[:4])} (teacher.train.KEY=... sets the teacher's)" if own else ""
    return f"{recipe.name}: trained now, {why}{more}"


def _of_training(recipe: Recipe) -> dict[str, Any]:
    groups = {"epochs", "batch_size", "accumulate", "optimizer", "schedule"}
    return recipe.model_dump(mode="json", exclude_none=True, include=groups)


@contextlib.contextmanager
def locked(folder: Path, name: str, display: Display) -> Iterator[None]:
    """No other job is in ``folder`` meanwhile; ``name`` is what waits where one is, as the display tells."""

    def waiting() -> None:
        display.note(f"{name}: another job trains in {folder}; waiting for it")

    def without(why: str) -> None:
        display.note(f"no locks where the results go ({why}): train one job at a time into a folder", once=True)

    with alone(folder, waiting, without):
        yield


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two nested mappings differ, as "key: old -> new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new} - set(FREE))
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{path}.{key}".strip("."))]
    return [] if old == new else [f"{path}: {old} -> {new}"]
