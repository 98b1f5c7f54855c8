"""Experiment trackers: the rows of ``metrics.jsonl`` in wandb, MLflow, TensorBoard, ...: whatever Accelerate knows."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType

from kdstream.atomic import write_atomic, writing
from kdstream.errors import UserError
from kdstream.recipe import Recipe
from kdstream.registry import import_named, nearest
from kdstream.terminal import visible
from kdstream.training.folder import TENSORBOARD, TRACKERS
from kdstream.training.metrics import read_metrics, read_speed

_PACKAGES = {"tensorboard": "'kdstream[tensorboard]'"}
"""What to install for a tracker, where that is not called as it is."""


def check_trackers(recipe: Recipe) -> None:
    """That the trackers of a recipe exist and can be imported; nothing is started.

    Raises:
        UserError: an unknown name; a package that is not installed, with the command that installs it.
    """
    for name in recipe.trackers:
        _class_of(name)


def _class_of(name: str) -> type[GeneralTracker]:
    if ":" in name:
        found = import_named(name, "tracker", _is_tracker)
        if not _is_tracker(found):
            raise UserError(f"tracker {name!r} is no class of accelerate.tracking.GeneralTracker: make it one")
        return found
    if name not in LOGGER_TYPE_TO_CLASS:
        raise UserError(f"unknown tracker {name!r}: {nearest(name, LOGGER_TYPE_TO_CLASS)}, or a dotted path")
    if name in [str(one) for one in LoggerType] and LoggerType(name) not in get_available_trackers():
        raise UserError(_missing(name))
    return LOGGER_TYPE_TO_CLASS[name]


def _missing(name: str) -> str:
    return f"track: {name} is not installed: pip install {_PACKAGES.get(name, name)}, or leave it out of track"


def _is_tracker(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, GeneralTracker)


@dataclass(frozen=True)
class Tracked:
    """What a tracker is to know of a training.

    Attributes:
        project: the job's name, which the tracker's project has.
        name: the training's, which the tracker's run has.
        folder: the training's.
        fingerprint: which training it is; the runs of another one that was in the folder before are not continued.
        recipe: its settings.
    """

    project: str
    name: str
    folder: Path
    fingerprint: str
    recipe: Recipe


@dataclass
class _Kept:
    """Of one tracker, what outlives the process: its run's id, and how many rows the run has."""

    id: str | None = None
    rows: int = 0


@dataclass
class Trackers:
    """The trackers of one training, started; the first process has them.

    A run's id and the number of rows that it has stand in ``trackers.json`` in the training's folder. So a training
    that continues goes on in the same run, and a tracker that was asked for later, or that failed, gets the rows that
    it lacks. The record is ``metrics.jsonl``: a tracker that fails (no network, a full disk) never stops a training.

    Attributes:
        about: the training.
        tell: shows a note.
    """

    about: Tracked
    tell: Callable[[str], None]
    _started: dict[str, GeneralTracker] = field(init=False, default_factory=dict)
    _kept: dict[str, _Kept] = field(init=False, default_factory=dict)
    _failed: set[str] = field(init=False, default_factory=set)

    def start(self) -> None:
        """Begin the runs, or continue them, with the rows that they lack.

        Raises:
            UserError: a tracker that does not start: no login, no server, a package that is broken.
        """
        self._kept = self._read()
        for name in self.about.recipe.trackers:
            kept = self._kept.setdefault(name, _Kept())
            known = kept.id
            try:
                tracker = _make(name, self.about, kept)
                tracker.start()
                self._started[name] = tracker
                kept.id = _id_of(name, tracker)
            except Exception as error:  # each package has its own
                self.finish()
                if isinstance(error, ImportError) and ":" not in name:
                    raise UserError(f"{_missing(name)} ({_said(error)})") from error
                raise UserError(f"track: {name} does not start: {_said(error)}; or leave it out of track") from error
            goes_on = "goes on" if kept.rows or (known and known == kept.id) else "begins"
            self.tell(f"{self.about.name}: {name} {goes_on}: {_place(tracker, kept.id or str(self.about.folder))}")
            if not kept.rows:
                self._try(name, partial(_configure, name, tracker, self.about.recipe))
        self._write()
        self.log()

    def log(self) -> None:
        """Give every tracker the rows of the folder that it lacks. One that fails is left in peace until the end."""
        rows = _rows(self.about.folder)
        before = [kept.rows for kept in self._kept.values()]
        for name, tracker in self._started.items():
            if name not in self._failed:
                self._try(name, partial(_catch_up, tracker, self._kept[name], rows))
        if before != [kept.rows for kept in self._kept.values()]:
            self._write()

    def _try(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # each package has its own
            self._failed.add(name)
            self.tell(
                f"{self.about.name}: {name} fails ({_said(error)}): the training goes on, metrics.jsonl has "
                "everything; the rest is tried at the end, and when the training is continued"
            )

    def finish(self) -> None:
        """End the runs; those that failed get what they lack, if they take it now. May be called more than once."""
        if self._failed:
            failed, self._failed = self._failed, set()
            self.log()
            for name in sorted(failed - self._failed):
                self.tell(f"{self.about.name}: {name} has got what it lacked")
        started, self._started = self._started, {}
        for name, tracker in started.items():
            try:
                tracker.finish()
            except Exception as error:
                self.tell(f"{self.about.name}: {name} does not end its run as it should ({_said(error)})")

    def _read(self) -> dict[str, _Kept]:
        """The runs of this training so far; none where the file is another's, or none of ours."""
        try:
            found = json.loads((self.about.folder / TRACKERS).read_bytes())
            if found["fingerprint"] != self.about.fingerprint:
                return {}
            kept = {str(name): _Kept(one["id"], one["rows"]) for name, one in found["runs"].items()}
            whole = all(isinstance(one.rows, int) and isinstance(one.id, str | None) for one in kept.values())
            return kept if whole else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _write(self) -> None:
        runs = {name: vars(kept) for name, kept in self._kept.items()}
        path, text = self.about.folder / TRACKERS, {"fingerprint": self.about.fingerprint, "runs": runs}
        with writing(path):
            write_atomic(path, (json.dumps(text, indent=2) + "\n").encode())


# --- the rows


def _catch_up(tracker: GeneralTracker, kept: _Kept, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
    for step, values in rows[kept.rows :]:
        tracker.log(values, step=step)
        if flush := getattr(tracker.tracker, "flush", None):
            flush()  # TensorBoard's would wait for two minutes
        kept.rows += 1


def _rows(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The optimizer's steps at the end of each epoch, and its numbers; what has no value is left out."""
    speeds = read_speed(folder)
    rows = []
    for i, row in enumerate(read_metrics(folder)):
        phase = row.get("phase", "main")
        group = "" if phase == "main" else f"{phase}/"
        # The total stands beside its terms, phases before the main one in groups of their own.
        named = {group + ("loss/total" if key == "loss" else key): one for key, one in row.items() if key != "step"}
        speed = speeds[i] if i < len(speeds) else {}
        named |= {f"speed/{key}": one for key, one in speed.items() if key not in ("epoch", "step")}
        numbers = {key: one for key, one in named.items() if isinstance(one, int | float) and not isinstance(one, bool)}
        rows.append((row.get("step") or 0, numbers))
    return rows


def flat(values: Mapping[str, Any], within: str = "") -> dict[str, bool | int | float | str | None]:
    """Nested settings as ``optimizer.lr: 0.1``; lists and empty groups as text: what every tracker takes."""
    found: dict[str, bool | int | float | str | None] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{within}{key}.")
        else:
            plain = value is None or isinstance(value, bool | int | float | str)
            found[f"{within}{key}"] = value if plain else json.dumps(value, ensure_ascii=False)
    return found


# --- what is particular to a tracker


def _make(name: str, about: Tracked, kept: _Kept) -> GeneralTracker:
    """A tracker that is not started yet."""
    kind: Any = _class_of(name)
    if name in LOGGER_TYPE_TO_CLASS:
        given, more = _own_settings(name, about, kept)
    else:
        # One of the user's: made as Accelerate makes those that are registered, and told more where it asks.
        given = (about.project, *((str(about.folder),) if kind.requires_logging_directory else ()))
        asks = list(inspect.signature(kind).parameters)[len(given) :]
        more = {key: one for key, one in (("run_name", about.name), ("run_id", kept.id)) if key in asks}
    tracker: GeneralTracker = kind(*given, **more)
    return tracker


def _own_settings(name: str, about: Tracked, kept: _Kept) -> tuple[tuple[str, ...], dict[str, Any]]:
    """How one of Accelerate's trackers is made: in its package's words, which project, which run, which to continue."""
    project, folder, known = about.project, about.folder, kept.id
    again = known is not None
    more: dict[str, Any]
    match name:
        case "wandb":
            # Its own bars and its copy of the terminal would come between ours.
            more = {"resume": "allow" if again else None, "settings": {"silent": True, "console": "off"}}
            return (re.sub(r"[/\\#?%:]", "-", project),), {"name": about.name, "id": known, **more}
        case "mlflow":
            return (project,), {"run_name": about.name, "run_id": known}
        case "tensorboard":
            place = folder / TENSORBOARD
            with writing(place):
                place.mkdir(parents=True, exist_ok=True)
                for old in place.glob("events.out.tfevents.*") if not kept.rows else ():
                    old.unlink()  # of a training that was here before
            return (TENSORBOARD, str(folder)), {}
        case "comet_ml":
            return (project,), {"experiment_key": known}
        case "aim":
            return (about.name, str(folder.parent)), {"experiment": project, "run_hash": known}
        case "clearml":
            # 0: steps count on from where they were, without an offset.
            more = {"reuse_last_task_id": known, "continue_last_task": 0} if again else {"reuse_last_task_id": False}
            return (project,), {"project_name": project, "task_name": about.name, **more}
        case "dvclive":
            return (project,), {"dir": str(folder / "dvclive"), "resume": kept.rows > 0}
        case "swanlab":
            more = {"id": known, "resume": "allow"} if again else {}
            return (project,), {"experiment_name": about.name, **more}
        case "trackio":
            return (project,), {"name": about.name, "resume": "allow" if again else "never"}
    return (project,), {}  # what a later Accelerate has


def _id_of(name: str, tracker: GeneralTracker) -> str | None:
    """By which the run is found again; None where it is none of many."""
    inner = tracker.tracker
    match name:
        case "mlflow":
            found = inner.info.run_id
        case "comet_ml":
            found = inner.get_key()
        case "aim":
            found = inner.hash
        case "trackio":
            found = inner.name
        case "wandb" | "clearml" | "swanlab":
            found = inner.id
        case _:
            found = getattr(tracker, "run_id", None)
    return None if found is None else str(found)


def _place(tracker: GeneralTracker, known: str) -> str:
    """Where a person finds the run."""
    inner = tracker.tracker
    url = None if getattr(inner, "offline", False) else getattr(inner, "url", None)  # wandb's warns that it has none
    return visible(url if isinstance(url, str) and url else known)


def _configure(name: str, tracker: GeneralTracker, recipe: Recipe) -> None:
    """The recipe as the run's settings."""
    if name == "tensorboard":  # which has text for it; what it calls hyperparameters is a folder of its own
        tracker.log({"recipe": "".join(f"    {line}\n" for line in recipe.to_yaml().splitlines())}, step=0)
    else:
        tracker.store_init_configuration(flat(recipe.shown()))


def _said(error: Exception) -> str:
    return visible(str(error).strip() or type(error).__name__)[:300]
