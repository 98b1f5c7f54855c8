"""Contest: the trainings of a comparison, where each of them lies, which are left, and what the finished ones reach."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from kdstream import recipe as settings
from kdstream.addresses import is_url, public
from kdstream.analysis.accuracy import of_batches
from kdstream.atomic import write_atomic, writing
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.models import is_dotted
from kdstream.recipe import Recipe
from kdstream.stream.stream import Stream
from kdstream.training.chains import evaluation_chain
from kdstream.training.comparing.methods import Method
from kdstream.training.comparing.setting import Setting
from kdstream.training.comparing.tuning import Trial
from kdstream.training.folder import RESULT
from kdstream.training.job import teacher_recipe
from kdstream.training.networks import make_teacher
from kdstream.training.rehearsal import rehearse
from kdstream.training.tables.cells import seedless
from kdstream.training.tables.finished import Finished
from kdstream.training.tables.work import Task, pair_of

TRAININGS, RECIPES, LOGS = "trainings", "recipes", "logs"
"""Folders within that of a comparison."""
EVALUATION = "evaluation.json"
"""What a pass of an exported student over the validation split gives, in the folder of its training."""


@dataclass(frozen=True)
class Training:
    """One student.

    Attributes:
        method: whose.
        recipe: with its seed, name and folder.
        trial: the tuned settings, of a trial.
    """

    method: Method
    recipe: Recipe
    trial: Trial = ()


@dataclass
class Contest:
    """A comparison's folder.

    Attributes:
        out: the folder.
        train: the split that all students learn from, as the recipes say.
    """

    out: Path
    train: ShardSet
    finished: Finished = field(init=False)

    def __post_init__(self) -> None:
        self.look()

    def look(self) -> None:
        """See anew what is finished."""
        self.finished = Finished(here=self.out / TRAININGS)

    def training(self, method: Method, setting: Setting, seed: int, trial: Trial = ()) -> Training:
        """The training of a method with a seed, in a folder that its settings name: what is changed is trained anew,
        and what was trained before is found again."""
        recipe = setting.recipe(method, trial)
        name = re.sub(r"[^\w.+-]+", "_", method.name)
        tuning = "tuning-" if recipe.data.hold_out else ""
        folder = f"{tuning}{name}-{seedless(recipe)[:8]}-seed{seed}"
        place = str(self.out / TRAININGS / folder)
        called = f"{'trial of ' if tuning else ''}{method.name}, seed {seed}"
        if trial:
            called += f" ({', '.join(trial)})"
        return Training(method, recipe.model_copy(update={"seed": seed, "out": place, "name": called}), trial)

    def done(self, training: Training) -> bool:
        """Whether it is finished, with this data."""
        found = self.finished.training(training.recipe)
        return found is not None and self._of_this_data(found.folder)

    def _of_this_data(self, folder: Path) -> bool:
        fingerprint = str(json.loads((folder / RESULT).read_text()).get("fingerprint"))
        if f"-{self.train.fingerprint[:16]}" in fingerprint:
            return True
        raise UserError(
            f"{folder} is of other images than {self.train.path} holds now: compare these in another folder, by --out"
        )

    def left(self, trainings: Iterable[Training]) -> list[Task]:
        """What is to be done for these trainings: teachers first, each once."""
        teachers: dict[str, Task] = {}
        students: dict[str, Task] = {}
        for one in trainings:
            if self.done(one):
                continue
            recipe, needs = one.recipe, None
            launch = self._launch(recipe)
            teaching = teacher_recipe(recipe)
            if teaching is not None and self.finished.teacher(teaching) is None:
                needs = teaching.fingerprint()
                name = f"teacher {teaching.student.model}{' without what is held out' if recipe.data.hold_out else ''}"
                task = Task(name, teaching, (*launch, "--only-teacher"), None, needs, pair_of(teaching))
                teachers.setdefault(needs, task)
            students.setdefault(str(recipe.out), Task(recipe.name, recipe, launch, needs, None, pair_of(recipe)))
        return [*teachers.values(), *students.values()]

    def _recipe_file(self, recipe: Recipe) -> Path:
        return self.out / RECIPES / f"{Path(str(recipe.out)).name}.yaml"

    def _launch(self, recipe: Recipe) -> tuple[str, ...]:
        """What ``kdstream train`` is given: its file, and addresses as they are, which no file keeps."""
        addresses = (
            f"{role}.weights={json.dumps(one.weights)}"
            for role in ("teacher", "student")
            if (one := getattr(recipe, role)) is not None and is_url(one.weights) and public(one.weights) != one.weights
        )
        return ("train", str(self._recipe_file(recipe)), *addresses)

    def write_recipes(self, tasks: Iterable[Task], trainings: Iterable[Training]) -> None:
        """Write the files that the tasks name."""
        wanted = {task.launch[1] for task in tasks}
        recipes = {str(self._recipe_file(one.recipe)): one.recipe for one in trainings}
        with writing(self.out):
            (self.out / RECIPES).mkdir(parents=True, exist_ok=True)
            for path in sorted(wanted):
                write_atomic(Path(path), recipes[path].to_yaml().encode())


def try_all(
    recipes: Mapping[str, Recipe], train: ShardSet, val: ShardSet, accelerator: Accelerator, tell: Callable[[str], None]
) -> None:
    """Rehearse what is left to do, so that no method turns out to be impossible after the teacher has been trained.

    Args:
        recipes: name -> what is to be tried.
        train, val: the splits.
        accelerator: says where.
        tell: is told what is tried.

    Raises:
        UserError: what a training would say, with the method's name.
    """
    teacher = None
    for name, recipe in recipes.items():
        tell(f"trying {name}")
        try:
            if recipe.teacher is not None and teacher is None:
                teaching = teacher_recipe(recipe)
                if teaching is None:
                    teacher = make_teacher(recipe.teacher, train.num_classes, train.classes, train)
                else:
                    teacher = rehearse(teaching, train, None, accelerator, val)
            rehearse(recipe, train, teacher if recipe.teacher is not None else None, accelerator, val)
        except UserError as error:
            said = str(error)
            raise UserError(said if name in said else f"{name}: {said}") from None


def evaluated(
    training: Training, val: ShardSet, device: torch.device, advance: Callable[[int], None]
) -> dict[str, Any]:
    """What the exported student of a finished training reaches on the validation split; measured once.

    Args:
        training: finished.
        val: the split; images as the recipe evaluates them.
        device: where.
        advance: told how many images are done.

    Returns:
        ``top1``, ``loss`` (nats), ``calibration_error`` (percent, see
        :attr:`kdstream.analysis.accuracy.Accuracy.calibration_error`), ``samples``; and ``result``, the content of the
        training's ``result.json``.
    """
    recipe, folder = training.recipe, training.recipe.folder()
    result = json.loads((folder / RESULT).read_text())
    of = {"fingerprint": result["fingerprint"], "data": val.fingerprint}
    try:
        kept = json.loads((folder / EVALUATION).read_text())
    except (OSError, ValueError):
        kept = {}
    if isinstance(kept, dict) and kept.get("of") == of:
        advance(len(val))
        return {**kept, "result": result}
    own = recipe.student.model if is_dotted(str(recipe.student.model)) else None
    wanted = settings.Teacher(weights=str(folder), model=own)
    network = make_teacher(wanted, val.num_classes, val.classes).network.to(device)
    stream = Stream(val, recipe.eval_batch_size, train=False, device=device, rank=0, world=1) | evaluation_chain(recipe)
    found = of_batches(network, stream, val.classes, device, advance)
    kept = {
        "of": of,
        "top1": found.top1,
        "top5": found.top5,
        "loss": found.loss,
        "calibration_error": found.calibration_error,
        "samples": found.samples,
    }
    with writing(folder):
        write_atomic(folder / EVALUATION, (json.dumps(kept, indent=1) + "\n").encode())
    return {**kept, "result": result}
