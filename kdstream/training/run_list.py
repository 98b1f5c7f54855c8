"""Runs that lie in a folder: what each has reached, when, and the command that goes on with it; read from its files."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from kdstream.errors import UserError
from kdstream.safe_yaml import read_yaml
from kdstream.training.metrics import METRICS_FILE, read_metrics

RECIPE, RESULT, LAST, PEERS, JOB = "recipe.yaml", "result.json", "last.pt", "peers", "job.yaml"
"""As in :mod:`kdstream.training.folder` and :mod:`kdstream.training.job`, which take seconds to import."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: its folder, as seen from the one that was searched.
        folder: that folder.
        state: ``finished``, ``epoch 12/60`` where it was left, ``not begun``.
        top1: percent, of the result or of the last epoch so far; None where there is none.
        when: its files changed last.
        command: continues it; None where nothing is left to do, or nobody knows how.
    """

    name: str
    folder: Path
    state: str
    top1: float | None
    when: datetime
    command: str | None


def find_runs(folder: Path) -> list[Run]:
    """All trainings below a folder, the latest first.

    Raises:
        UserError: there is no such folder; a metrics file that is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: runs lie where a recipe's out says, runs/NAME if it says nothing")
    runs = [_read(place, folder) for place in _places(folder)]
    return sorted(runs, key=lambda run: run.when, reverse=True)


def _places(folder: Path) -> Iterator[Path]:
    """The folders of trainings; a job of several is none itself."""
    for path in sorted(folder.rglob(RECIPE)):
        if path.parent.parent.name != PEERS:
            yield path.parent


def _read(place: Path, top: Path) -> Run:
    recipe: Any = None
    with contextlib.suppress(UserError):
        recipe = read_yaml(place / RECIPE)
    recipe = recipe if isinstance(recipe, dict) else {}
    result = _json(place / RESULT)
    rows = [row for row in read_metrics(place) if row.get("phase", "main") == "main"]
    done = isinstance(result.get("top1"), int | float)
    if done:
        state, top1 = "finished", result["top1"]
    elif rows:
        state, top1 = f"epoch {len(rows)}/{recipe.get('epochs', '?')}", rows[-1].get("val/top1")
    else:
        state, top1 = "begun" if (place / LAST).exists() else "not begun", None
    files = (place / name for name in (RECIPE, RESULT, LAST, METRICS_FILE))
    newest = max(path.stat().st_mtime for path in files if path.exists())
    name = place.relative_to(top).as_posix() if place != top else place.name
    return Run(name, place, state, top1, datetime.fromtimestamp(newest), None if done else _command(place, top))


def _command(place: Path, top: Path) -> str | None:
    """Of the job whose folder this is or lies in; a teacher's, which many share, is nobody's."""
    for folder in (place, *place.parents):
        if (folder / JOB).is_file():
            return shlex.join(["kdstream", "train", str(folder / JOB), f"out={folder}"])
        if folder == top:
            break
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
