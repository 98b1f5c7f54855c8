"""Job: everything that a recipe asks for, in order: shards, teacher, students, table and report."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator

import kdstream
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.objectives import parse_loss
from kdstream.recipe import Recipe
from kdstream.stream.convert import make_shards
from kdstream.stream.shards import ShardSet, open_shards
from kdstream.training.fit import StopFlag, Trainer, evaluation_chain, training_chain
from kdstream.training.metrics import read_metrics, read_speed
from kdstream.training.networks import Teacher, load_teacher, tapped
from kdstream.training.progress import Display
from kdstream.training.report import RunRecord, write_report


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
            place = folder / name.replace(" ", "_") if recipe.runs else folder
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
        student = {"model": teacher.model, "options": teacher.options, "taps": teacher.taps, "weights": None}
        settings = {"loss": {"ce": 1.0}, "student": student, "teacher": None, **teacher.train}
        return self.recipe.variant(settings, f"teacher {teacher.model}", f"{self.recipe.name}: teacher.train")

    def _data(self) -> tuple[ShardSet, ShardSet]:
        """The splits; makes them first where the recipe names a source."""
        data = self.recipe.data
        path = Path(data.path)
        if self.accelerator.is_main_process and data.source is not None and not (path / "dataset.json").exists():
            self.display.headline(f"Making shards of {data.source} in {path}")
            make_shards(data.source, path, console=self.display.console)
        val = data.val or ("val" if any(path.glob("val-*.tar")) else "test")
        with self.accelerator.main_process_first():  # it may have to build the index of a foreign set
            return open_shards(path / data.train), open_shards(path / val)

    def _prepare(self, folder: Path) -> None:
        """Make the output folder; with ``fresh``, without what kdstream left there before."""
        mark = folder / "job.yaml"
        if self.fresh and folder.exists():
            if not mark.exists():
                raise UserError(
                    f"{folder} was not made by kdstream, --fresh will not delete it: choose another out=FOLDER"
                )
            shutil.rmtree(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(self.recipe.to_yaml())
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): choose another out=FOLDER") from None

    def _teacher(self, teaching: Recipe | None, train: ShardSet, val: ShardSet) -> tuple[Teacher | None, Path | None]:
        wanted = self.recipe.teacher
        if wanted is None:
            return None, None
        if teaching is None:
            return load_teacher(wanted, train.num_classes), None
        name = f"{train.name}-{wanted.model}-{teaching.fingerprint()[:8]}".replace("/", "_").replace(":", "_")
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
            place = folder / name.replace(" ", "_") if self.recipe.runs else folder
            records.append(RunRecord(name, read_metrics(place), read_speed(place), result))
        taught = None
        if teacher is not None:
            result = _read_result(teacher)
            taught = RunRecord(str(result["name"]), read_metrics(teacher), read_speed(teacher), result)
        device = (
            torch.cuda.get_device_name() if self.accelerator.device.type == "cuda" else platform.processor() or "CPU"
        )
        facts = {
            "command": " ".join(["train.py", *sys.argv[1:]]),
            "data": f"{train.path} ({len(train)} training samples, {train.num_classes} classes)",
            "seed": str(self.recipe.seed),
            "device": f"{device}, {self.accelerator.num_processes} process(es), {os.cpu_count()} CPU cores",
            "versions": f"kdstream {kdstream.__version__}, torch {torch.__version__}, "
            f"accelerate {accelerate.__version__}, Python {platform.python_version()}",
        }
        path = folder / "report.html"
        write_report(path, f"kdstream: {self.recipe.name}", records, taught, facts, self.recipe.to_yaml())
        rows = [_row(record.name, record.result) for record in ([taught] if taught else []) + records]
        self.display.table(self.recipe.name, rows)
        self.display.note(f"report: {path.resolve()}")


def check(recipe: Recipe) -> None:
    """Read the loss, the chains, the networks and their taps, so that a misspelt name is found before work begins."""
    try:
        terms = parse_loss(recipe.loss)
        training_chain(recipe, any(term.uses_teacher for _, _, term in terms))
        evaluation_chain(recipe)
        for wanted, taps in (
            (recipe.student, [tap for _, _, term in terms for tap in term.student_taps]),
            (recipe.teacher, [tap for _, _, term in terms for tap in term.teacher_taps]),
        ):
            if wanted is not None and wanted.model is not None and ":" not in wanted.model:
                options = {key: value for key, value in wanted.options.items() if key != "weights"}
                with torch.device("meta"):  # its structure only, at no cost
                    tapped(build(wanted.model, 10, **options), taps, wanted)
    except UserError as error:
        raise UserError(f"recipe {recipe.name}: {error}") from None


def _read_result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def _row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    teacher = result.get("teacher", {})
    return {
        "run": name,
        "model": result["model"],
        "params": result["params"],
        "top-1 %": result["top1"],
        "teacher's entropy": teacher["entropy"][0] if teacher else None,
        "images/s": result["images_per_s"],
        "seconds": result["seconds"],
    }
