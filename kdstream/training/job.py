"""Job: everything that a recipe asks for, in order: shards, teacher, students, table and report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import torch
import yaml
from accelerate import Accelerator

import kdstream
from kdstream.errors import UserError
from kdstream.models import MODELS, build
from kdstream.objectives import parse_loss
from kdstream.recipe import Model, Recipe, make_recipe, run_folder
from kdstream.stream.convert import make_shards
from kdstream.stream.language import parse_calls
from kdstream.stream.shards import ShardSet, open_shards
from kdstream.training.chains import evaluation_chain, training_chain
from kdstream.training.fit import Trainer
from kdstream.training.metrics import read_metrics, read_speed
from kdstream.training.networks import Teacher, load_teacher, need_weights_file, tapped
from kdstream.training.progress import Display
from kdstream.training.report import RunRecord, write_report
from kdstream.training.stop import StopFlag

MARK = "job.yaml"
"""The recipe, in the output folder; tells such a folder from any other."""
WRITTEN = (
    *(MARK, "report.html", "recipe.yaml", "metrics.jsonl", "speed.jsonl", "result.json"),
    *("last.pt", "best.pt", "student.json", "student.safetensors", ".lock"),
)
"""The files of an output folder."""


@dataclass
class Job:
    """A recipe on its way.

    Attributes:
        recipe: what to do.
        accelerator: this process's place among the processes, its device, its precision.
        display: what a person sees.
        fresh: forget what an earlier run left in the output folder (a trained teacher and the shards stay).
    """

    recipe: Recipe
    accelerator: Accelerator
    display: Display
    fresh: bool = False
    stop: StopFlag = field(default_factory=StopFlag)

    def run(self) -> list[dict[str, Any]]:
        """Do it. Returns the results of the students' trainings.

        Raises:
            UserError: as soon as something in the input is found to be wrong, before any long work where possible.
            Stopped: by signal; everything is saved and the same job continues.
        """
        recipe = self.recipe
        runs = {name: recipe.variant(over, name, recipe.name) for name, over in recipe.runs.items()}
        runs = runs or {recipe.name: recipe}
        teaching = self._teacher_recipe()
        for one in [*runs.values(), *([teaching] if teaching else [])]:
            check(one)
        train, val = self._data()
        folder = recipe.folder()
        if self.accelerator.is_main_process:
            self._prepare(folder)
        self.accelerator.wait_for_everyone()
        teacher, teacher_folder = self._teacher(teaching, train, val)
        results = []
        for name, one in runs.items():
            place = folder / run_folder(name) if recipe.runs else folder
            results.append(self._fit(one, place, train, val, teacher))
        if self.accelerator.is_main_process:
            self._report(folder, runs, results, teacher_folder, train)
        return results

    def _fit(self, recipe: Recipe, folder: Path, train: ShardSet, val: ShardSet, teacher: Teacher | None) -> Any:
        return Trainer(recipe, folder, train, val, teacher, self.accelerator, self.display, self.stop).fit()

    def _teacher_recipe(self) -> Recipe | None:
        """How to train the teacher: the recipe without teacher and runs, with the settings of teacher.train."""
        teacher = self.recipe.teacher
        if teacher is None or teacher.weights is not None or teacher.train is None:
            return None
        if teacher.model is None:
            raise UserError("teacher.model is missing: name a network, such as teacher=resnet56")
        student = Model(model=teacher.model, options=teacher.options, taps=teacher.taps)
        # Without the stages that a loss of labels leaves out anyway: coded and plain students share one teacher.
        calls = [call for call in parse_calls(self.recipe.stream) if call.name not in ("coded", "teacher")]
        alone = {"loss": {"ce": 1.0}, "student": student, "teacher": None, "stream": " | ".join(map(str, calls))}
        base = self.recipe.model_copy(update=alone)
        return base.variant(teacher.train, f"teacher {teacher.model}", f"{self.recipe.name}: teacher.train")

    def _data(self) -> tuple[ShardSet, ShardSet]:
        """The splits; makes them first where the recipe names a source."""
        data = self.recipe.data
        path = Path(data.path)
        if self.accelerator.is_main_process and data.source is not None and not (path / "dataset.json").exists():
            self.display.headline(f"Making shards of {data.source} in {path}")
            make_shards(data.source, path, console=self.display.console)
        with self.accelerator.main_process_first():  # it may have to make shards, or the index of a foreign set
            val = data.val or ("val" if _has_split(path, "val") else "test")
            shards = open_shards(path / data.train), open_shards(path / val)
        largest = int(shards[1].labels.max(initial=0))
        if largest >= shards[0].num_classes:
            raise UserError(
                f"{path}: {val} holds class {largest}, {data.train} has {shards[0].num_classes} classes "
                f"(0 to {shards[0].num_classes - 1}): make both of the same classes"
            )
        for one in shards:
            one.mean, one.std = data.mean or one.mean, data.std or one.std
        return shards

    def _prepare(self, folder: Path) -> None:
        """Make the output folder; with ``fresh``, without what kdstream left there before."""
        mark = folder / MARK
        if self.fresh and folder.exists() and not mark.exists():
            raise UserError(f"{folder} was not made by kdstream, --fresh will not delete it: choose another out=FOLDER")
        try:
            if self.fresh and folder.exists():
                _forget(folder, self.recipe)
            folder.mkdir(parents=True, exist_ok=True)
            if not mark.exists():
                mark.write_text(self.recipe.to_yaml())
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): choose another out=FOLDER") from None

    def _teacher(self, teaching: Recipe | None, train: ShardSet, val: ShardSet) -> tuple[Teacher | None, Path | None]:
        wanted = self.recipe.teacher
        if wanted is None:
            return None, None
        if teaching is None:
            return load_teacher(wanted, train.num_classes), None
        # Named by everything that decides the result, so that no other recipe or data set finds it in its way.
        mark = hashlib.sha256(f"{teaching.fingerprint()}-{train.fingerprint}".encode()).hexdigest()[:8]
        name = f"{train.name}-{wanted.model}-{mark}".replace("/", "_").replace(":", "_")
        folder = self.recipe.folder().parent / "teachers" / name
        self._fit(teaching, folder, train, val, None)
        found = wanted.model_copy(update={"weights": str(folder), "train": None})
        return load_teacher(found, train.num_classes), folder

    def _report(
        self,
        folder: Path,
        runs: dict[str, Recipe],
        results: list[dict[str, Any]],
        teacher: Path | None,
        train: ShardSet,
    ) -> None:
        records = []
        for name, result in zip(runs, results, strict=True):
            place = folder / run_folder(name) if self.recipe.runs else folder
            records.append(RunRecord(name, read_metrics(place), read_speed(place), result))
        taught = None
        if teacher is not None:
            result = _read_result(teacher)
            taught = RunRecord(str(result["name"]), read_metrics(teacher), read_speed(teacher), result)
        device = (
            torch.cuda.get_device_name() if self.accelerator.device.type == "cuda" else platform.processor() or "CPU"
        )
        facts = {
            "command": shlex.join(["train.py", *sys.argv[1:]]),
            "data": f"{train.path} ({len(train)} training samples, {train.num_classes} classes)",
            "seed": str(self.recipe.seed),
            "device": f"{device}, {self.accelerator.num_processes} process(es), {os.cpu_count()} CPU cores",
            "versions": f"kdstream {kdstream.__version__}, torch {torch.__version__}, "
            f"accelerate {accelerate.__version__}, Python {platform.python_version()}",
        }
        (folder / MARK).write_text(self.recipe.to_yaml())  # as it is now: it may have got another run
        path = folder / "report.html"
        write_report(path, f"kdstream: {self.recipe.name}", records, taught, facts, self.recipe.to_yaml())
        rows = [_row(record.name, record.result) for record in ([taught] if taught else []) + records]
        self.display.table(self.recipe.name, rows)
        self.display.note(f"report: {path.resolve()}")


def check(recipe: Recipe) -> None:
    """Read the loss, the chains, the networks and their taps, so that a misspelt name is found before work begins."""
    try:
        terms = parse_loss(recipe.loss)
        asking = [name for name, _, term in terms if term.uses_teacher]
        if asking and recipe.teacher is None:
            raise UserError(f"the loss ({', '.join(asking)}) needs a teacher: add teacher: to the recipe")
        if not any(term.in_main for _, _, term in terms):
            names = ", ".join(name for name, _, _ in terms)
            raise UserError(f"the loss ({names}) only prepares the student: add a term that trains it, such as ce")
        training_chain(recipe, bool(asking))
        evaluation_chain(recipe)
        for role, wanted, taps in (
            ("student", recipe.student, [tap for _, _, term in terms for tap in term.student_taps]),
            ("teacher", recipe.teacher, [tap for _, _, term in terms for tap in term.teacher_taps]),
        ):
            if wanted is None:
                continue
            need_weights_file(wanted, role)
            if wanted.model is not None and ":" in wanted.model:
                MODELS.find(wanted.model)
            elif wanted.model is not None:
                options = {key: value for key, value in wanted.options.items() if key != "weights"}
                # Its structure only, at no cost; torchvision's RegNets compute with tensors and cannot be built so.
                with torch.device("meta"), contextlib.suppress(NotImplementedError):
                    tapped(build(wanted.model, 10, **options), taps, wanted)
            elif wanted.weights is None:
                raise UserError(f"{role}.model is missing: name a network, such as {role}=resnet20")
    except UserError as error:
        raise UserError(f"recipe {recipe.name}: {error}") from None


def _has_split(folder: Path, split: str) -> bool:
    """Whether the folder's tars, or a folder of tars in it, carry the split's name."""
    return (folder / split).is_dir() or any(split in re.split(r"[-_.]", path.name) for path in folder.glob("*.tar"))


def _forget(folder: Path, recipe: Recipe) -> None:
    """Delete what kdstream wrote to an output folder, and nothing that somebody else keeps there."""
    names = set(recipe.runs)
    with contextlib.suppress(yaml.YAMLError, ValueError, TypeError):  # UserError is a ValueError
        names |= set(make_recipe(yaml.safe_load((folder / MARK).read_text(encoding="utf-8")), MARK).runs)
    places = [folder / run_folder(name) for name in sorted(names)]
    for place in [*places, folder]:
        for name in WRITTEN:
            (place / name).unlink(missing_ok=True)
            (place / f"{name}.part").unlink(missing_ok=True)
        for event in place.glob("tensorboard/events.out.tfevents.*"):
            event.unlink()
        for empty in (place / "tensorboard", place):
            with contextlib.suppress(OSError):  # the user keeps something in it
                empty.rmdir()


def _read_result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def _row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    teacher = result.get("teacher", {})
    return {
        "run": name,
        "model": result["model"],
        "params": result["params"],
        "top-1 %": result["top1"],
        "entropy": teacher["entropy"][0] if teacher else None,
        "images/s": result["images_per_s"],
        "seconds": result["seconds"],
    }
