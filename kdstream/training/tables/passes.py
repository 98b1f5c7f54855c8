"""Passes: what a finished network answers to a split's images, looked at once and kept beside its training."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from kdstream.analysis.answers import look_at
from kdstream.analysis.asked import Asked
from kdstream.analysis.peakiness import peakiness
from kdstream.analysis.robustness import SEVERITIES, Corrupt, corrupting, library, splits_of, top1s
from kdstream.analysis.transfer import transferability
from kdstream.atomic import write_atomic
from kdstream.batch import Batch
from kdstream.data.dataset_info import load_dataset_info
from kdstream.data.sealed_json import seal_fits, sealed
from kdstream.data.shards import ShardSet, open_shards
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.models.taps import Tapped
from kdstream.recipe import Recipe
from kdstream.recipe import Teacher as Wanted
from kdstream.stream.language import Call, parse_calls
from kdstream.stream.stage import Chain
from kdstream.stream.stream import Stream
from kdstream.training.accelerator import make_accelerator, settle
from kdstream.training.chains import evaluation_chain
from kdstream.training.checks import agree_on_classes
from kdstream.training.evaluate import validation_batches
from kdstream.training.folder import MEASURED
from kdstream.training.job import Job
from kdstream.training.networks import Teacher, make_teacher
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
        corrupted: a data set whose splits are corrupted images, as ``fog_3``; None = that which lies beside a cell's,
            by its name and a c, as CIFAR-100-C in ``cifar100c``; where none does, they are made here.

    Attributes:
        remarks: what a reader should know of how values were had.

    Raises:
        UserError: no such data set.
    """

    def __init__(
        self, finished: Finished, bar: Bar, cpu: bool = False, look: bool = True, corrupted: Path | None = None
    ):
        self.finished, self.bar, self.cpu, self.look, self.corrupted = finished, bar, cpu, look, corrupted
        if corrupted is not None:
            load_dataset_info(corrupted)
        self.remarks: list[str] = []
        self._accelerator: Accelerator | None = None
        self._data: dict[str, tuple[ShardSet, ShardSet]] = {}
        self._files: dict[str, dict[int, ShardSet]] = {}
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
            network = self._asked(self._network(cell, done, images), images)
            teacher = None if beside is None else self._asked(self._taught_by(cell, images), images)
            with self.bar(f"{cell.key}, seed {done.seed}", len(images)) as advance:
                batches, device = self._batches(recipe, images), self._device().device
                return look_at(network, batches, tuple(images.classes), device, teacher, advance)

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

    def robustness(self, cell: Cell, done: Done, corruption: str) -> float:
        """Percent of the validation images under a corruption that the exported network classifies correctly, mean over
        its severities.

        Raises:
            NotHere: why it cannot be had.
        """
        recipe = _recipe(cell)
        _, val = self._splits(recipe)
        files = self._corrupted(recipe, corruption)
        if files:
            names = [one.fingerprint for one in files.values()]
            remark = f"corrupted images: those of the data set {next(iter(files.values())).name}"
        else:
            names = ["made here"]
            remark = (
                "corrupted images: made of the validation images by imagecorruptions, at the strengths meant for "
                "ImageNet, which are above those of CIFAR's files"
            )

        def look() -> dict[str, Any]:
            network = self._asked(self._network(cell, done, val), val)
            corrupt = None if files else _library(corruption)

            def batches(severity: int) -> Iterator[Batch]:
                if corrupt is None:
                    return self._batches(recipe, files[severity])
                return corrupting(self._batches(recipe, val), corruption, severity, corrupt)

            total = sum(map(len, files.values())) or len(val) * len(SEVERITIES)
            with self.bar(f"{cell.key}, seed {done.seed}, {corruption}", total) as advance:
                found = {str(n): top1s([network], batches(n), advance)[0] for n in SEVERITIES}
            return {"top1": sum(found.values()) / len(found), "severities": found}

        about = ["robustness", corruption, str(evaluation_chain(recipe)), self._name(val), *names]
        value = float(self._kept_or(cell, done, about, look)["top1"])
        if remark not in self.remarks:
            self.remarks.append(remark)
        return value

    def transferability(self, cell: Cell, done: Done, source: str, cells: Sequence[Cell]) -> float:
        """Percent of the images that the network and an attacked one both classify correctly, of which the network gets
        the attacked ones wrong.

        Args:
            cell: whose network is shown the attacked images.
            done: its training.
            source: the row whose network of the same seed is attacked, or ``teacher``.
            cells: of the table. The others of the cell's column are shown the same images, as an attack takes long.

        Raises:
            NotHere: why it cannot be had.
        """
        recipe = _recipe(cell)
        _, images = self._splits(recipe)
        load, name = self._source(source, cell, done, cells, images)
        about = ["transferability", str(evaluation_chain(recipe)), self._name(images), name]

        def look() -> dict[str, Any]:
            shown = [(done, self._asked(self._network(cell, done, images), images))]
            for other in cells:
                one = None if other.column != cell.column else self.finished.of(other).get(done.seed)
                if one is None or one.folder == done.folder:
                    continue
                with contextlib.suppress(NotHere, UserError):  # whoever asks for that one is told
                    path, key = self._place(one, about)
                    if key not in self._kept[path]:
                        shown.append((one, self._asked(self._network(other, one, images), images)))
            networks = [self._asked(load(), images), *(network for _, network in shown)]
            with self.bar(f"{cell.column}, seed {done.seed}, {len(shown)} shown its attack", len(images)) as advance:
                batches = self._batches(recipe, images)
                names = [str(i) for i in range(len(networks))]
                found = transferability(names, networks, batches, attacked=[0], advance=advance)
            values = [
                {"share": shares[0], "images": counts[0]}
                for shares, counts in zip(found.shares[1:], found.images[1:], strict=True)
            ]
            for (one, _), value in zip(shown[1:], values[1:], strict=True):
                self._keep(one, about, value)
            return values[0]

        share = self._kept_or(cell, done, about, look)["share"]
        if share is None:
            raise NotHere("no image that both networks classify correctly")
        return float(share)

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
                    taught = rehearse(settle(_full(teaching), accelerator), train, None, accelerator)
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
        path, key = self._place(done, about)
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
        self._keep(done, about, found)
        return found

    def _place(self, done: Done, about: list[str]) -> tuple[Path, str]:
        """The file that looks at a training are kept in, which is read, and the name there of one."""
        path = done.folder / MEASURED
        if path not in self._kept:
            self._kept[path] = _read(path)
        return path, hashlib.sha256(json.dumps([VERSION, _weights(done), *about]).encode()).hexdigest()[:16]

    def _keep(self, done: Done, about: list[str], found: dict[str, Any]) -> None:
        path, key = self._place(done, about)
        self._kept[path][key] = {"of": about[0], **found}
        with contextlib.suppress(OSError):  # somebody else's folder: the next report looks again
            write_atomic(path, (json.dumps(sealed(self._kept[path]), indent=1) + "\n").encode())

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

    def _asked(self, given: Teacher, images: ShardSet) -> Asked:
        """A network as a function of images that are not standardised."""
        network = given.network.requires_grad_(False).eval().to(self._device().device)
        return Asked("", network, given.mean or images.mean, given.std or images.std)

    def _batches(self, recipe: Recipe, images: ShardSet) -> Iterator[Batch]:
        """A split as evaluation cuts it, not standardised."""
        view = Chain(tuple(stage for stage in evaluation_chain(recipe).stages if stage.role != "normalize"))
        place: dict[str, Any] = {"rank": 0, "world": 1, "device": self._device().device}
        stream = Stream(images, recipe.eval_batch_size, train=False, workers=recipe.workers, **place)
        return validation_batches(stream | view)

    def _corrupted(self, recipe: Recipe, corruption: str) -> dict[int, ShardSet]:
        """Severity -> split; empty where no data set of them is here.

        Raises:
            NotHere: it lacks some, or is of other classes.
        """
        beside = Path(f"{recipe.data.path}c")
        folder = self.corrupted or (beside if (beside / "dataset.json").exists() else None)
        if folder is None:
            return {}
        key = json.dumps([str(folder), corruption, recipe.data.model_dump_json()])
        if key not in self._files:
            train, _ = self._splits(recipe)
            try:
                there = splits_of(load_dataset_info(folder).splits).get(corruption, [])
                if lacking := set(SEVERITIES) - set(there):
                    raise NotHere(f"{folder} lacks {corruption}_{min(lacking)}: kdstream shards cifar100c:DIR makes it")
                found = {n: open_shards(folder / f"{corruption}_{n}") for n in there}
                for one in found.values():
                    agree_on_classes(recipe.data, f"{folder}: {one.split}", train, one)
            except UserError as error:
                raise NotHere(str(error)) from None
            if any(list(one.classes) != list(train.classes) for one in found.values()):
                raise NotHere(f"{folder} has other classes than {recipe.data.path}")
            self._files[key] = found
        return self._files[key]

    def _source(
        self, source: str, cell: Cell, done: Done, cells: Sequence[Cell], images: ShardSet
    ) -> tuple[Callable[[], Teacher], str]:
        """What loads an attacked network, and its name."""
        if source == "teacher":
            taught = next((c for c in (cell, *cells) if c.recipe is not None and c.recipe.teacher is not None), None)
            if taught is None:
                raise NotHere("the attack is on a teacher, and nothing in the table has one")
            return lambda: self._taught_by(taught, images), self._teachers_name(taught, _recipe(taught).teacher)
        other = next((c for c in cells if (c.row, c.column) == (source, cell.column)), None)
        if other is None or other.recipe is None:
            raise NotHere(f"the attack is on {source}, which nothing in the table trains")
        if (one := self.finished.of(other).get(done.seed)) is None:
            raise NotHere(f"needs {source} by seed {done.seed}, which is attacked")
        return lambda: self._network(other, one, images), _weights(one)

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
    return _full(cell.recipe)


def _full(recipe: Recipe) -> Recipe:
    """A recipe in full precision, in which a pass is, whatever the training was in."""
    return recipe.model_copy(update={"precision": None})


def _library(corruption: str) -> Corrupt:
    try:
        return library()
    except UserError:
        raise NotHere(
            f"needs images of {corruption}: kdstream shards cifar100c:DIR shards/cifar100c, which count beside "
            'shards/cifar100, or elsewhere by --corrupted; or pip install "kdstream[robustness]" makes some'
        ) from None


def _exported(folder: Path, model: str | None) -> Wanted:
    """What a training exported, as a network to be asked."""
    if not (folder / "student.safetensors").exists():
        raise NotHere(f"no weights in {folder}")
    # What was exported says which network it is; only somebody's own code must be named to be run.
    return Wanted(weights=str(folder), model=model if model is not None and ":" in model else None)


def _weights(done: Done) -> str:
    """The checksum of what a training exported; of a given teacher, that of its file."""
    if "key" in done.result:
        return str(done.result["key"])
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
