"""Passes: what a finished network answers to a split's images, looked at once and kept beside its training."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from kdstream.analysis.answers import look_at
from kdstream.analysis.peakiness import peakiness
from kdstream.atomic import write_atomic
from kdstream.data.sealed_json import seal_fits, sealed
from kdstream.data.shards import ShardSet
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.models.taps import Tapped
from kdstream.recipe import Recipe
from kdstream.recipe import Teacher as Wanted
from kdstream.stream.language import Call, parse_calls
from kdstream.stream.stream import Stream
from kdstream.training.accelerator import make_accelerator, settle
from kdstream.training.chains import evaluation_chain
from kdstream.training.evaluate import validation_batches
from kdstream.training.folder import MEASURED
from kdstream.training.job import Job
from kdstream.training.networks import Converted, Teacher, make_teacher
from kdstream.training.rehearsal import rehearse
from kdstream.training.setup import set_up
from kdstream.training.tables.cells import Cell
from kdstream.training.tables.finished import Done, Finished
from kdstream.training.tables.timing import data_is_there

VERSION = 1
"""Of what is kept; another one is measured anew."""

Bar = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]
"""Shows a pass, (name, images) -> what is told of images that are done."""


@contextlib.contextmanager
def without_bar(name: str, images: int) -> Iterator[Callable[[int], None]]:
    """Shows nothing."""
    yield lambda count: None


class NotHere(Exception):
    """A value that cannot be had; its text says why, for people."""


class Passes:
    """Looks at finished networks; whatever was kept of an earlier look is read.

    Args:
        finished: finds teachers.
        bar: shows the progress of a pass.
        cpu: use no GPU.
        look: False = only what was kept is read.
    """

    def __init__(self, finished: Finished, bar: Bar, cpu: bool = False, look: bool = True):
        self.finished, self.bar, self.cpu, self.look = finished, bar, cpu, look
        self._accelerator: Accelerator | None = None
        self._data: dict[str, tuple[ShardSet, ShardSet]] = {}
        self._kept: dict[Path, dict[str, Any]] = {}
        self._failed: dict[tuple[str, str], str] = {}

    def answers(self, cell: Cell, done: Done) -> Mapping[str, Any]:
        """What :func:`kdstream.analysis.answers.look_at` tells of the exported weights of a finished training, over
        the images of the table's split; beside its teacher's answers where it had one.

        Raises:
            NotHere: why it cannot be had.
        """
        recipe = _recipe(cell)
        train, val = self._splits(recipe)
        images = train if cell.table.images == "train" else val
        beside = None if cell.of_teacher or recipe.teacher is None else recipe.teacher

        def look() -> dict[str, Any]:
            accelerator = self._device()
            network = self._network(cell, done, images)
            asked: nn.Module | None = None
            if beside is not None:
                taught = self._taught_by(cell, images)
                mean, std = taught.mean or images.mean, taught.std or images.std
                asked = Converted(Tapped(taught.network), images, mean, std).to(accelerator.device).eval()
            mean, std = network.mean or images.mean, network.std or images.std
            given = {"mean": mean, "std": std}
            place: dict[str, Any] = {"rank": 0, "world": 1, "device": accelerator.device, "given": given}
            stream = Stream(images, recipe.eval_batch_size, train=False, workers=recipe.workers, **place)
            stream = stream | evaluation_chain(recipe)
            module = Tapped(network.network).to(accelerator.device).eval()

            def answer(batch: Tensor) -> Tensor:
                return module(batch).logits

            def teachers(batch: Tensor) -> Tensor:
                assert asked is not None
                return asked(batch).logits

            with self.bar(f"{cell.key}, seed {done.seed}", len(images)) as advance:
                return look_at(
                    answer,
                    validation_batches(stream),
                    tuple(images.classes),
                    accelerator.device,
                    None if asked is None else teachers,
                    advance,
                )

        about = ["answers", str(evaluation_chain(recipe)), self._name(images), self._teachers_name(cell, beside)]
        return self._kept_or(cell, done, about, look)

    def coded(self, cell: Cell, done: Done) -> Mapping[str, Any]:
        """The same (entropy, probability, covariance, with deviations) of a teacher's answers to the versions that the
        coded stage of the cell's stream chooses.

        Raises:
            NotHere: why it cannot be had.
        """
        recipe = _recipe(cell)
        train, val = self._splits(recipe)
        images = train if cell.table.images == "train" else val
        call = coded_call(recipe)
        assert call is not None

        def look() -> dict[str, Any]:
            device = self._device().device
            teacher = self._network(cell, done, images)
            settings: dict[str, Any] = dict(zip(("selector", "delta"), call.args, strict=False))
            settings |= {key: value for key, value in call.settings.items() if key != "plan"}
            with self.bar(f"{cell.key}, coded", len(images)) as advance:
                found = peakiness(
                    Tapped(teacher.network).to(device).eval(),
                    images,
                    teacher.mean or images.mean,
                    teacher.std or images.std,
                    workers=recipe.workers,
                    device=device,
                    advance=advance,
                    **settings,
                ).coded
            return {
                "entropy": found.entropy_mean,
                "entropy_std": found.entropy_std,
                "probability": found.probability_mean,
                "probability_std": found.probability_std,
                "covariance": found.covariance,
                "top1": found.top1,
                "entropy_histogram": list(found.entropy_histogram),
            }

        return self._kept_or(cell, done, ["coded", str(call), self._name(images), ""], look)

    def additional_parameters(self, cell: Cell, done: Done) -> int:
        """How many a training has beside those of the student: connectors, branches, peers.

        Raises:
            NotHere: why it cannot be had.
        """
        recipe = _recipe(cell)
        train, val = self._splits(recipe)

        def look() -> dict[str, Any]:
            accelerator = self._device()
            alone = settle(recipe, accelerator)
            taught = None
            if recipe.teacher is not None:
                teaching = cell.teaching()
                if teaching is None or cell.given:
                    taught = self._taught_by(cell, train)
                else:
                    taught = rehearse(settle(teaching, accelerator), train, None, accelerator)
            setup = set_up(alone, train, val, taught, accelerator, rehearsal=True)
            whole = sum(parameter.numel() for parameter in setup.distiller.parameters())
            student = sum(parameter.numel() for parameter in setup.networks["student"].parameters())
            return {"value": whole - student}

        return int(self._kept_or(cell, done, ["additional_parameters", "", "", ""], look)["value"])

    def classes(self, cell: Cell) -> list[str]:
        """The names of the data's classes.

        Raises:
            NotHere: the data is not.
        """
        return list(self._splits(_recipe(cell))[1].classes)

    # --- what is kept

    def _kept_or(self, cell: Cell, done: Done, about: list[str], look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was kept of a look, or what it finds."""
        path = done.folder / MEASURED
        if path not in self._kept:
            self._kept[path] = _read(path)
        weights = str(done.result["key"]) if "key" in done.result else _weights(done)  # of a given teacher: of its file
        key = hashlib.sha256(json.dumps([VERSION, weights, *about]).encode()).hexdigest()[:16]
        kept = self._kept[path]
        if key in kept:
            return dict(kept[key])
        if not self.look:
            raise NotHere("not measured yet")
        mark = (str(path), key)
        if mark in self._failed:
            raise NotHere(self._failed[mark])
        try:
            found = look()
        except UserError as error:
            self._failed[mark] = str(error)
            raise NotHere(str(error)) from None
        except NotHere as error:
            self._failed[mark] = str(error)
            raise
        kept[key] = {"of": about[0], **found}
        with contextlib.suppress(OSError):  # somebody else's folder: the next report looks again
            write_atomic(path, (json.dumps(sealed(kept), indent=1) + "\n").encode())
        return found

    # --- what a pass needs

    def _device(self) -> Accelerator:
        if self._accelerator is None:
            self._accelerator = make_accelerator(self.cpu, "no")
        return self._accelerator

    def _splits(self, recipe: Recipe) -> tuple[ShardSet, ShardSet]:
        key = recipe.data.model_dump_json()
        if key not in self._data:
            if not data_is_there(recipe):
                raise NotHere(f"needs the images: {recipe.data.path} is not here")
            try:
                display = Display(enabled=False)
                alone = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": None})})
                self._data[key] = Job(settle(alone, self._device()), self._device(), display).data()
            except UserError as error:
                raise NotHere(str(error)) from None
        return self._data[key]

    def _network(self, cell: Cell, done: Done, images: ShardSet) -> Teacher:
        """The exported student; for a teacher's cell, the teacher."""
        recipe = _recipe(cell)
        if cell.of_teacher and cell.given and "key" in done.result:
            assert recipe.teacher is not None
            return make_teacher(recipe.teacher, images.num_classes, images.classes, images)
        role = recipe.teacher if cell.of_teacher else recipe.student
        assert role is not None
        return make_teacher(_exported(done.folder, role.model), images.num_classes, images.classes)

    def _taught_by(self, cell: Cell, images: ShardSet) -> Teacher:
        recipe = _recipe(cell)
        wanted, teaching = recipe.teacher, cell.teaching()
        assert wanted is not None
        if teaching is None or cell.given:
            return make_teacher(wanted, images.num_classes, images.classes, images)
        if (done := self.finished.teacher(teaching)) is None:
            raise NotHere(f"its teacher {wanted.model} is not here")
        return make_teacher(_exported(done.folder, wanted.model), images.num_classes, images.classes)

    def _teachers_name(self, cell: Cell, wanted: Wanted | None) -> str:
        """What tells its teacher from another one."""
        if wanted is None:
            return ""
        teaching = cell.teaching()
        done = None if teaching is None or cell.given else self.finished.teacher(teaching)
        return str(wanted.weights or wanted.model) if done is None else _weights(done)

    def _name(self, images: ShardSet) -> str:
        return json.dumps([images.fingerprint, images.mean, images.std])


def coded_call(recipe: Recipe) -> Call | None:
    """The coded stage of a recipe's stream."""
    return next((call for call in parse_calls(recipe.stream) if call.name == "coded"), None)


def _recipe(cell: Cell) -> Recipe:
    assert cell.recipe is not None
    return cell.recipe


def _exported(folder: Path, model: str | None) -> Wanted:
    """What a training exported, as a network to be asked."""
    if not (folder / "student.safetensors").exists():
        raise NotHere(f"no weights in {folder}")
    # What was exported says which network it is; only somebody's own code must be named to be run.
    return Wanted(weights=str(folder), model=model if model is not None and ":" in model else None)


def _weights(done: Done) -> str:
    """The checksum of what a training exported."""
    try:
        return str(json.loads((done.folder / "student.json").read_text(encoding="utf-8"))["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise NotHere(f"no weights in {done.folder}") from None


def _read(path: Path) -> dict[str, Any]:
    """What is kept in a file; nothing of one that is missing or changed."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or not seal_fits(found):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, dict)}
