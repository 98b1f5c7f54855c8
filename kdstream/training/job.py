"""Job: everything that a recipe asks for, in order: shards, teacher, assistants, students, table and report."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

import kdstream
from kdstream import recipe as settings
from kdstream.addresses import is_url, public
from kdstream.atomic import remove_parts, write_atomic, writing
from kdstream.convert.kept_shards import kept_shards
from kdstream.convert.make_shards import make_shards
from kdstream.convert.open_source import is_source
from kdstream.data.altered import Altered, as_asked, told
from kdstream.data.dataset_info import DATASET_FILE
from kdstream.data.held_out import divided
from kdstream.data.shards import ShardSet, has_split, open_shards, split_of
from kdstream.display.progress import Display
from kdstream.display.report import RunRecord, write_report
from kdstream.errors import UserError
from kdstream.models import is_dotted
from kdstream.models.download import Unavailable
from kdstream.models.published import comparable, find
from kdstream.notes import architecture
from kdstream.recipe import Assistant, Data, Model, Recipe, make_recipe, run_folder
from kdstream.safe_yaml import read_yaml
from kdstream.stream.language import parse_calls
from kdstream.training.accelerator import settle
from kdstream.training.checks import agree_on_classes, asks_teacher, check, lacking_classes
from kdstream.training.doubts import doubts, same_images
from kdstream.training.folder import KEPT, PEERS, TENSORBOARD, locked, which_teacher
from kdstream.training.loop import Trainer
from kdstream.training.metrics import read_metrics, read_speed
from kdstream.training.networks import Teacher, make_teacher, together, trained_here
from kdstream.training.own_code import code_mark
from kdstream.training.records import cohort, read_record, table_row
from kdstream.training.rehearsal import rehearse
from kdstream.training.seeds import RESULTS, over_seeds, rows_over_seeds
from kdstream.training.stop import StopFlag
from kdstream.training.teacher_check import TEACHER_FILE, check_teacher, note_absence, noted_absence

MARK = "job.yaml"
"""The recipe, in the output folder; tells such a folder from any other."""
WRITTEN = (*KEPT, "report.html", RESULTS, TEACHER_FILE, MARK)
"""The files of an output folder; the one that says whose it is goes last."""


@dataclass
class Training:
    """One student's training.

    Attributes:
        run: of the recipe's runs, the one that it belongs to.
        name: its own, with the seed where there are several.
        recipe: its settings.
        folder: where it goes.
        result: the content of ``result.json``, as soon as it is finished.
    """

    run: str
    name: str
    recipe: Recipe
    folder: Path
    result: dict[str, Any] = field(default_factory=dict)


@dataclass
class Job:
    """A recipe on its way.

    Attributes:
        recipe: what to do.
        accelerator: this process's place among the processes, its device, its precision.
        display: what a person sees.
        fresh: forget what an earlier run left in the output folder (trained teachers, assistants and the shards stay).
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
        recipe = self.recipe = settle(self.recipe, self.accelerator)
        runs = {name: recipe.variant(over, name, recipe.name) for name, over in recipe.runs.items()}
        runs = runs or {recipe.name: recipe}
        teaching = teacher_recipe(recipe)
        chains = {name: self._links(one.assistants) for name, one in runs.items()}
        for one in [*runs.values(), *([teaching] if teaching else [])]:
            check(one)
        for link in (link for links in chains.values() for link in links):
            check(link)
            if not asks_teacher(link):
                raise UserError(
                    f"recipe {link.name}: its loss ({', '.join(link.loss)}) does not look at a teacher: name one that "
                    "does, by loss: of the recipe or of the assistant's train:"
                )
        needed = any(map(asks_teacher, runs.values())) or any(chains.values())
        others = _others(recipe) if needed else []
        train, val = self.data()
        folder = recipe.folder()
        teacher, absent = self._given_teacher(teaching, train)
        beside = [self._loaded(one, train) if how is None else None for one, how in others]
        taught = None
        teaching = teaching if needed and teacher is None else None
        teachers_images = self._teachers_images(teaching, train)
        trainings = self._trainings(runs)
        left = [one.name for one in trainings if self.fresh or not (one.folder / "result.json").exists()]
        # A job beside this one may finish a run meanwhile: all processes do what the first of them found.
        left = broadcast_object_list([left])[0]
        to_try = {one.run: [*chains[one.run], one.recipe] for one in trainings if one.name in left}
        self._rehearse(to_try, teaching, teacher, train, teachers_images, val)
        for _, how in others:
            if how is not None:
                rehearse(how, self._teachers_images(how, train), None, self.accelerator, val)
        if self.accelerator.is_main_process:
            self._prepare(folder)
        self.accelerator.wait_for_everyone()
        self._tell_what_is_left_out(needed)
        doubtful = [(one, train) for links in to_try.values() for one in links]
        for one, images in [*([(teaching, teachers_images)] if teaching else []), *doubtful]:
            for note in doubts(one, images):
                self.display.note(f"{'' if one is recipe else f'{one.name}: '}{note}", once=True)
        if recipe.teacher is not None and teaching is not None:
            about = {} if absent is None else self._tell_absence(str(recipe.teacher.weights), absent, train.num_classes)
            wanted = trained_here(recipe.teacher.each()[0])
            assert wanted is not None
            teacher_folder, result = self._train_teacher(teaching, teachers_images, val)
            teacher = self._loaded(_found(wanted, teacher_folder), train)
            taught = read_record(teacher_folder)
            notes = [one["note"] for one in (about, result) if one.get("note")]
            taught.result |= {**about, "note": "; ".join(notes) or None}
        if teacher is not None and others:
            more = [
                known or self._trained_beside(one, how, train, val)
                for (one, how), known in zip(others, beside, strict=True)
            ]
            teacher = together([teacher, *more], train)
        if teacher is not None and needed and (teaching is None or others):
            asking = next(one for name, one in runs.items() if chains[name] or asks_teacher(one))
            taught = self._check_teacher(teacher, asking, val, folder)
        assistants: list[Path] = []
        for name in runs:
            last, passed = self._assist(chains[name], teacher, train, val)
            assistants += [link for link in passed if link not in assistants]
            for training in (one for one in trainings if one.run == name):
                training.result = self._trainer(training.recipe, training.folder, train, val, last).fit()
        if self.accelerator.is_main_process:
            self._report(folder, trainings, taught, assistants, train)
        return [one.result for one in trainings]

    def run_teacher(self) -> dict[str, Any]:
        """Train the teacher alone, or evaluate one that is trained; what is known of it, as ``result.json`` has it.

        Raises:
            UserError, Stopped: as :meth:`run`; UserError, too, for a recipe without a teacher.
        """
        recipe = self.recipe = settle(self.recipe, self.accelerator)
        if recipe.teacher is None:
            raise UserError(f"recipe {recipe.name} has no teacher: name one, as teacher=resnet56")
        teaching = teacher_recipe(recipe)
        check(teaching or recipe)
        train, val = self.data()
        teacher, absent = self._given_teacher(teaching, train)
        if absent is not None or teacher is not None:
            if self.accelerator.is_main_process:
                self._prepare(recipe.folder())
            self.accelerator.wait_for_everyone()
        if teacher is None:
            assert teaching is not None
            weights = str(recipe.teacher.weights)
            about = {} if absent is None else self._tell_absence(weights, absent, train.num_classes)
            images = self._teachers_images(teaching, train)
            rehearse(teaching, images, None, self.accelerator, val)
            found = self._train_teacher(teaching, images, val)[1] | about
        else:
            found = self._check_teacher(teacher, recipe, val, recipe.folder()).result
        for _, how in _others(recipe):
            if how is not None:
                self._train_teacher(how, self._teachers_images(how, train), val)
        return found

    def _trainings(self, runs: Mapping[str, Recipe]) -> list[Training]:
        """Each run as one training, or as one for each of the recipe's seeds."""
        folder = self.recipe.folder()
        found = []
        for run, recipe in runs.items():
            place = folder / run_folder(run) if self.recipe.runs else folder
            if self.recipe.seeds is None:
                found.append(Training(run, run, recipe, place))
            for seed in self.recipe.each_seed():
                name = f"{run}, seed {seed}"
                one = recipe.model_copy(update={"name": name, "seed": seed, "seeds": None})
                found.append(Training(run, name, one, place / f"seed{seed}"))
        return found

    def _trainer(
        self, recipe: Recipe, folder: Path, train: ShardSet, val: ShardSet, teacher: Teacher | None
    ) -> Trainer:
        return Trainer(recipe, folder, train, val, teacher, self.accelerator, self.display, self.stop, self.recipe.name)

    def _train_teacher(self, teaching: Recipe, train: ShardSet, val: ShardSet) -> tuple[Path, dict[str, Any]]:
        """Train the teacher, or all of those of which the best teaches; its folder and result, whose ``note`` says of
        how many it is the best."""
        found: dict[Path, dict[str, Any]] = {}
        each = each_teacher(teaching)
        for one in each:
            folder = self._kept(one, train)
            if (why := which_teacher(folder, one, self.recipe)) is not None:
                self.display.note(why)
            found[folder] = self._trainer(one, folder, train, val, None).fit()
        best = max(found, key=lambda folder: float(found[folder]["top1"]))  # the first of equal ones
        if len(found) == 1:
            return best, found[best]
        seed = each[list(found).index(best)].seed
        tops = ", ".join(f"{result['top1']:.2f}" for result in found.values())
        note = f"of {len(found)} teachers {teaching.student.model} the one of seed {seed} teaches (top-1 {tops} %)"
        self.display.note(note)
        return best, {**found[best], "note": note}

    def _given_teacher(self, teaching: Recipe | None, train: ShardSet) -> tuple[Teacher | None, str | None]:
        """The teacher whose weights are given.

        Args:
            teaching: how it is trained where there are none, or where published ones cannot be had.
            train: its classes.

        Returns:
            The teacher, None where there is none yet; and why published weights could not be had, where they could not:
            all processes do without them then, and so does this job when it goes on after an interruption.

        Raises:
            UserError: see :func:`kdstream.training.networks.make_teacher`.
        """
        wanted = self.recipe.teacher
        if wanted is None or (wanted.weights is None and teaching is not None):
            return None, None
        wanted = wanted.each()[0]
        if teaching is None:
            return self._loaded(wanted, train), None
        teacher, absent = None, None if self.fresh else noted_absence(self.recipe.folder(), str(wanted.weights))
        if absent is None:
            try:
                teacher = self._loaded(wanted, train)
            except Unavailable as error:
                absent = str(error)
        absent = next(filter(None, gather_object([absent])), None)
        return (teacher if absent is None else None), absent

    def _loaded(self, wanted: settings.Teacher, train: ShardSet) -> Teacher:
        return make_teacher(wanted, train.num_classes, train.classes, train)

    def _trained_beside(
        self, wanted: settings.Teacher, teaching: Recipe | None, train: ShardSet, val: ShardSet
    ) -> Teacher:
        """One of several teachers, trained now or before."""
        assert teaching is not None
        folder, _ = self._train_teacher(teaching, self._teachers_images(teaching, train), val)
        return self._loaded(_found(wanted, folder), train)

    def _tell_absence(self, weights: str, why: str, num_classes: int) -> dict[str, Any]:
        """That a teacher is trained in place of a published one; what of it stands beside the teacher's results."""
        if self.accelerator.is_main_process:
            note_absence(self.recipe.folder(), weights, why)
        wanted = find(weights)
        note = f"{why}; a teacher is trained here in its place"
        self.display.headline(f"warning: {note} (published: {wanted.top1:.2f} % top-1); --fresh asks for it again")
        return {"published": comparable(wanted, num_classes), "note": note}

    def _check_teacher(self, teacher: Teacher, recipe: Recipe, val: ShardSet, folder: Path) -> RunRecord:
        """The row of a teacher that was trained elsewhere; says what is to be known of its classes."""
        if teacher.note is not None:
            self.display.note(teacher.note)
        found = check_teacher(teacher, recipe, val, folder, self.accelerator, self.display)
        if found["warning"]:
            self.display.headline(f"warning: {found['name']}: {found['warning']}")
        notes = [teacher.note]
        if found.get("difference"):
            notes.append(f"{found['name']}: {found['difference']}")
            self.display.note(str(notes[-1]))
        return RunRecord(found["name"], result={**found, "note": "; ".join(filter(None, notes)) or None})

    def _links(self, assistants: Sequence[Assistant]) -> list[Recipe]:
        """How to train each assistant: the recipe with it as the student, after those before it."""
        links = []
        for i, assistant in enumerate(assistants):
            student = Model(model=assistant.model, options=assistant.options, taps=assistant.taps)
            alone = {"student": student, "assistants": list(assistants[:i])}
            alone |= {"export_network": "student", "export_all": False, "ema": None}
            base = self.recipe.model_copy(update=alone)
            name = f"assistant {assistant.model}"
            links.append(base.variant(assistant.train, name, f"{self.recipe.name}: assistants.{i}.train"))
        return links

    def data(self) -> tuple[ShardSet, ShardSet]:
        """The splits; makes them first where the recipe names a source."""
        data = self.recipe.data
        path = self._shards_folder()
        with self.accelerator.main_process_first():  # it may have to make the index of a foreign set
            train = open_shards(split_of(path, data.train))
            val = data.train if data.hold_out else data.val or _validation(path)
            shards = train, open_shards(split_of(path, val))
        agree_on_classes(data, val, *shards)
        if not data.hold_out and (note := same_images(*shards)):
            self.display.headline(f"warning: {note}")
        for one in shards:
            for note in one.notes:
                self.display.note(f"{one.name}/{one.split}: {note}")
            one.mean, one.std = data.mean or one.mean, data.std or one.std
        shards = self._altered(shards[0], data), shards[1]
        if data.hold_out:
            shards = divided(shards[0], data.hold_out, data.seed or 0)
            self.display.note(
                f"hold_out: {len(shards[1]):,} samples of {data.train} validate, {len(shards[0]):,} train"
            )
        for note in lacking_classes(*shards):
            self.display.note(note)
        return shards

    def _shards_folder(self) -> str:
        """Where the shards lie, a folder or an address; makes them first where the recipe names a source."""
        data, console = self.recipe.data, self.display.console
        places: list[str | None] = [None, None]  # the folder, or what is wrong
        if self.accelerator.is_main_process:
            try:
                path = data.path
                if is_source(path):
                    if data.source is not None:
                        raise UserError(f"data.path={data.path} is a source itself: leave data.source out")
                    path = str(kept_shards(path, console=console))
                elif data.source is not None and not Path(path, "dataset.json").exists():
                    self.display.headline(f"Making shards of {data.source} in {path}")
                    make_shards(data.source, path, console=console)
                places[0] = path
            except UserError as error:
                places[1] = str(error)
        broadcast_object_list(places)
        if places[0] is None:
            raise UserError(str(places[1]))
        return places[0]

    def _altered(self, whole: ShardSet, data: Data) -> ShardSet:
        """What a training sees of a split."""
        altered = as_asked(whole, data)
        for note in told(altered):
            self.display.note(f"{whole.name}/{whole.split}: {note}")
        return altered

    def _teachers_images(self, teaching: Recipe | None, train: ShardSet) -> ShardSet:
        """The training split of the teacher, which may see other images than its students."""
        if teaching is None or teaching.data == self.recipe.data:
            return train
        return self._altered(train.base if isinstance(train, Altered) else train, teaching.data)

    def _prepare(self, folder: Path) -> None:
        """Make the output folder; with ``fresh``, without what kdstream left there before."""
        mark = folder / MARK
        if self.fresh and folder.exists() and not mark.exists():
            raise UserError(f"{folder} was not made by kdstream, --fresh will not delete it: choose another out=FOLDER")
        try:
            if self.fresh and folder.exists():
                for place in _places(folder, self.recipe):
                    with locked(place, self.recipe.name, self.display):
                        _forget(place)
                    with contextlib.suppress(OSError):  # the user keeps something in it
                        place.rmdir()
            with locked(folder, self.recipe.name, self.display):
                remove_parts(folder, WRITTEN)
                if not mark.exists():
                    write_atomic(mark, self.recipe.to_yaml().encode())
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): choose another out=FOLDER") from None

    def _rehearse(
        self,
        left: Mapping[str, Sequence[Recipe]],
        teaching: Recipe | None,
        teacher: Teacher | None,
        train: ShardSet,
        teachers_images: ShardSet,
        val: ShardSet,
    ) -> None:
        """Try what is left to do before anything is trained.

        Args:
            left: run -> the recipes of its assistants and, last, its own: each learns from the one before it.
            teaching: how the teacher will be trained; None where there is none to train.
            teacher: a trained one.
            train, teachers_images, val: the images.

        Raises:
            UserError: what a training would else say at its beginning, hours later.
        """
        tried: dict[str, Teacher | None] = {}

        def exported(recipe: Recipe, taught_by: Teacher | None, images: ShardSet = train) -> Teacher | None:
            key = recipe.fingerprint()
            if key not in tried:
                unknown = taught_by is None and asks_teacher(recipe)  # until the one before it is trained
                tried[key] = None if unknown else rehearse(recipe, images, taught_by, self.accelerator, val)
            return tried[key]

        for recipes in left.values():
            last = teacher if teaching is None else exported(teaching, None, teachers_images)
            for recipe in recipes:
                last = exported(recipe, last)

    def _tell_what_is_left_out(self, needed: bool) -> None:
        recipe, wanted = self.recipe, self.recipe.teacher
        if recipe.tensorboard:
            self.display.note("tensorboard: true is now track: [tensorboard]; both work")
        coded = any(call.name == "coded" for call in parse_calls(recipe.stream))
        if coded and not recipe.runs and not asks_teacher(recipe):
            self.display.note(f"coded is left out: no term of {', '.join(recipe.loss)} looks at a teacher")
        if wanted is not None and wanted.weights is None and wanted.train is not None and not needed:
            self.display.note(f"teacher {wanted.model} is left out: no term of the loss looks at it")

    def _kept(self, recipe: Recipe, train: ShardSet, taught_by: str = "") -> Path:
        """The folder of a network that teaches others, named by everything that decides the result, so that no other
        recipe or data set finds it in its way."""
        deciding = f"{recipe.fingerprint()}{code_mark(recipe)}-{train.fingerprint}{taught_by}"
        mark = hashlib.sha256(deciding.encode()).hexdigest()[:8]
        name = f"{train.name}-{recipe.student.model}-{mark}".replace("/", "_").replace(":", "_")
        return self.recipe.folder().parent / "teachers" / name

    def _assist(
        self, links: Sequence[Recipe], teacher: Teacher | None, train: ShardSet, val: ShardSet
    ) -> tuple[Teacher | None, list[Path]]:
        """Pass the teacher's knowledge on from assistant to assistant; the last one, and the folders of all."""
        folders: list[Path] = []
        for i, link in enumerate(links, 1):
            assert teacher is not None
            before = architecture(teacher.network)
            folder = self._kept(link, train, f"-{teacher.hash}")
            self.display.headline(f"Link {i} of {len(links) + 1}: {link.student.model} learns from {before}")
            self._trainer(link, folder, train, val, teacher).fit()
            teacher = self._loaded(_found(link.student, folder), train)
            folders.append(folder)
        if links:
            last = links[-1].student.model
            self.display.headline(f"Link {len(links) + 1} of {len(links) + 1}: the student learns from {last}")
        return teacher, folders

    def _report(
        self,
        folder: Path,
        trainings: Sequence[Training],
        taught: RunRecord | None,
        assistants: Sequence[Path],
        train: ShardSet,
    ) -> None:
        records = [one for place in assistants for one in cohort(read_record(place, "assistant"))]
        for one in trainings:
            records += cohort(RunRecord(one.name, read_metrics(one.folder), read_speed(one.folder), one.result))
        together: dict[str, dict[int, dict[str, Any]]] = {}
        for one in trainings if self.recipe.seeds is not None else ():
            together.setdefault(one.run, {})[one.recipe.seed] = one.result
        device = (
            torch.cuda.get_device_name() if self.accelerator.device.type == "cuda" else platform.processor() or "CPU"
        )
        facts = {
            "command": shlex.join(["train.py", *map(public, sys.argv[1:])]),
            "data": f"{train.path} ({len(train)} training samples, {train.num_classes} classes)",
            "seed": ", ".join(map(str, self.recipe.each_seed() or [self.recipe.seed])),
            "device": f"{device}, {self.accelerator.num_processes} process(es), {os.cpu_count()} CPU cores",
            "precision": {"no": "float32"}.get(str(self.recipe.precision), str(self.recipe.precision)),
            "versions": f"kdstream {kdstream.__version__}, torch {torch.__version__}, "
            f"accelerate {accelerate.__version__}, Python {platform.python_version()}",
        }
        said = [] if taught is None else [taught.result.get(key) for key in ("note", "warning")]
        if any(said):
            facts["teacher"] = "; ".join(filter(None, said))
        path = folder / "report.html"
        with writing(folder), locked(folder, self.recipe.name, self.display):
            write_atomic(folder / MARK, self.recipe.to_yaml().encode())  # as it is now: it may have got another run
            over = over_seeds(together)
            if together:
                write_atomic(folder / RESULTS, (json.dumps(over, indent=2) + "\n").encode())
            title, recipe = f"kdstream: {self.recipe.name}", self.recipe.to_yaml()
            write_report(path, title, records, taught, facts, recipe, rows_over_seeds(over))
        rows = [table_row(record.name, record.result) for record in ([taught] if taught else []) + records]
        self.display.table(self.recipe.name, rows)
        if together:
            self.display.table("over seeds", rows_over_seeds(over))
        self.display.note(f"report: {path.resolve()}")


def _validation(path: str) -> str:
    """The name of the split to evaluate on.

    Raises:
        UserError: there is none.
    """
    for name in ("val", "test"):
        if has_split(path, name):
            return name
    if not is_url(path) and any(Path(path).glob("*.index.npz")) and not Path(path, DATASET_FILE).exists():
        raise UserError(f"{Path(path, DATASET_FILE)} is missing, which names the splits; copy or make the shards again")
    raise UserError(
        f"{public(path)} has no split val or test to evaluate on: name one, as data.val=NAME, or hold a part of the "
        "training split out, as data.hold_out=0.1, or in the shards: kdstream shards SOURCE DEST --hold-out 0.1"
    )


def teacher_recipe(recipe: Recipe) -> Recipe | None:
    """How to train a recipe's teacher: the recipe without teacher and runs, with the settings of teacher.train. Where
    the best of several teaches, its ``seeds`` says how many there are.

    Returns:
        None where there is no teacher, or one that is given by weights that training does not stand in for.

    Raises:
        UserError: settings that no recipe has, a teacher without a model.
    """
    teacher = None if recipe.teacher is None else trained_here(recipe.teacher)
    if teacher is None or teacher.train is None:
        return None
    if teacher.model is None:
        raise UserError("teacher.model is missing: name a network, such as teacher=resnet56")
    student = Model(model=teacher.model, options=teacher.options, taps=teacher.taps)
    # Without the stages that a loss of labels leaves out anyway: coded and plain students share one teacher.
    alone = {"loss": {"ce": 1.0}, "student": student, "teacher": None, "stream": _uncoded(recipe.stream)}
    alone |= {"assistants": [], "export_network": "student", "export_all": False, "ema": None, "early_stop": None}
    base = recipe.model_copy(update=alone)
    train = dict(teacher.train)
    if isinstance(train.get("stream"), str):
        train["stream"] = _uncoded(train["stream"])
    made = base.variant(train, f"teacher {teacher.model}", f"{recipe.name}: teacher.train")
    return made.model_copy(update={"seeds": teacher.seeds})


def _others(recipe: Recipe) -> list[tuple[settings.Teacher, Recipe | None]]:
    """The teachers beside the first, and how each is trained; None where its weights are given.

    Raises:
        UserError: a recipe that cannot train it.
    """
    found: list[tuple[settings.Teacher, Recipe | None]] = []
    for one in recipe.teacher.each()[1:] if recipe.teacher is not None else []:
        teaching = teacher_recipe(recipe.model_copy(update={"teacher": one})) if one.weights is None else None
        if teaching is not None:
            check(teaching)
        found.append((one, teaching))
    return found


def each_teacher(teaching: Recipe) -> list[Recipe]:
    """The trainings of a teacher: one, or those of several seeds, the best of which teaches."""
    seeds = teaching.each_seed() or [teaching.seed]
    several = len(seeds) > 1
    return [
        teaching.model_copy(
            update={"seed": seed, "seeds": None, "name": f"{teaching.name}, seed {seed}" if several else teaching.name}
        )
        for seed in seeds
    ]


def _uncoded(stream: str) -> str:
    return " | ".join(str(call) for call in parse_calls(stream) if call.name not in ("coded", "teacher"))


def _found(wanted: Model, folder: Path) -> settings.Teacher:
    """What was trained into a folder, as the teacher of the next."""
    # What was exported says which network it is; only somebody's own code must be named to be run.
    model = wanted.model if is_dotted(str(wanted.model)) else None
    return settings.Teacher(
        **{**wanted.model_dump(), "weights": str(folder), "model": model, "train": None, "seeds": None}
    )


def _places(folder: Path, recipe: Recipe) -> list[Path]:
    """The folders of an output folder that exist: those of its runs, as they are and as they were, with those of their
    seeds, and itself."""
    names, seeds = set(recipe.runs), set(recipe.each_seed())
    with contextlib.suppress(UserError, TypeError):
        before = make_recipe(read_yaml(folder / MARK), MARK)
        names, seeds = names | set(before.runs), seeds | set(before.each_seed())
    runs = [*(folder / run_folder(name) for name in sorted(names)), folder]
    places = [place for run in runs for place in (*(run / f"seed{seed}" for seed in sorted(seeds)), run)]
    return [place for place in places if place.is_dir()]


def _forget(place: Path) -> None:
    """Delete what kdstream wrote to a folder, and nothing that somebody else keeps there."""
    remove_parts(place, WRITTEN)
    for name in WRITTEN:
        (place / name).unlink(missing_ok=True)
    peers = list(place.glob(f"{PEERS}/*/student.json"))
    for peer in peers:
        remove_parts(peer.parent, KEPT)
        peer.unlink()
        peer.with_suffix(".safetensors").unlink(missing_ok=True)
    for event in place.glob(f"{TENSORBOARD}/events.out.tfevents.*"):
        event.unlink()
    for empty in (*(peer.parent for peer in peers), place / PEERS, place / TENSORBOARD):
        with contextlib.suppress(OSError):  # the user keeps something in it
            empty.rmdir()
