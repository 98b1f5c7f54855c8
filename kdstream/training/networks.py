"""The student to train and the teacher to learn from, as a recipe describes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdstream import recipe as settings
from kdstream.addresses import is_published
from kdstream.batch import SMALLEST_STD, Outputs
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models import build, from_hf
from kdstream.models.download import Unavailable
from kdstream.models.ensemble import Ensemble, within_first
from kdstream.models.pretrained import brings_weights, check_weights, load_for, load_network, load_teacher
from kdstream.models.published import find
from kdstream.models.taps import Tapped
from kdstream.notes import about_of, architecture, taps_of
from kdstream.tap_names import spelled_out


@dataclass
class Teacher:
    """A trained teacher.

    Attributes:
        network: images -> logits.
        settings: the recipe's.
        mean, std: what it was trained with; None = the data set's.
        hash: of its weights.
        note: what a user should know of its classes.
    """

    network: nn.Module
    settings: settings.Teacher
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    hash: str
    note: str | None = None


def known_of(teacher: Teacher) -> dict[str, Any]:
    """What a student's export says of its teacher: ``model``, and ``top1`` (percent) where the teacher's own export has
    it."""
    about = about_of(teacher.network)
    top1 = ((about.get("extra") or {}).get("result") or {}).get("top1")
    named = {"model": teacher.settings.model or architecture(teacher.network)}
    return named if top1 is None else {**named, "top1": top1}


class Converted(nn.Module):
    """A teacher that takes images standardised for the student and converts them to its own mean and deviation.

    Args:
        network: the teacher, images -> Outputs.
        data: whose mean and std the incoming images were standardised with.
        mean, std: the teacher's.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: Tapped, data: ShardSet, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        teachers, images = (torch.tensor(each).clamp(min=SMALLEST_STD) for each in (std, data.std))
        self.register_buffer("scale", (images / teachers).view(3, 1, 1))
        self.register_buffer("shift", ((torch.tensor(data.mean) - torch.tensor(mean)) / teachers).view(3, 1, 1))

    @property
    def module(self) -> nn.Module:
        """The plain network."""
        return self.network.module

    @property
    def paths(self) -> dict[str, str]:
        """Tap name -> module path, of the taps that it gives."""
        return self.network.paths

    @property
    def classifier(self) -> nn.Linear:
        """Its last linear layer."""
        return self.network.classifier

    def forward(self, images: Tensor) -> Outputs:
        """Images [N,3,H,W] -> Outputs."""
        return self.network(images * self.scale.to(images.device) + self.shift.to(images.device))


def make_student(wanted: settings.Model, num_classes: int, classes: Sequence[str] | None = None) -> nn.Module:
    """The student, untrained or from the recipe's weights.

    Args:
        wanted: the recipe's.
        num_classes: C.
        classes: names of the data's C classes: weights are brought in their order, and ``about["note"]`` of the network
            is what a user should know of that; None: nobody knows them.

    Raises:
        UserError: no model named; weights that do not fit, are for other classes, or are not finite.
    """
    can_learn(wanted)
    if wanted.weights is not None:
        need_weights(wanted, "student")
        with _named("student"):
            if classes is None:
                network = load_network(wanted.weights, num_classes, model=wanted.model, options=wanted.options)
            else:
                network, note = _load_for(classes, wanted, "student")
                about_of(network)["note"] = note
            check_finite(network)
            return network
    if wanted.classes is not None:
        raise UserError("student.classes says which outputs of given weights to take, and there are no student.weights")
    if wanted.model is None:
        raise UserError("student.model is missing: name a network, such as student=resnet20")
    return build(wanted.model, num_classes, **wanted.options)


def can_learn(student: settings.Model) -> None:
    """That a network can be a student.

    Raises:
        UserError: its export could not be rebuilt without its library's repository.
    """
    if (student.model or "").startswith(from_hf.PREFIX):
        raise UserError(f"student {student.model}: networks of transformers only teach; timm has most of them")


def make_teacher(
    wanted: settings.Teacher, num_classes: int, classes: Sequence[str] | None = None, data: ShardSet | None = None
) -> Teacher:
    """The teacher from its weights; several as one, see :func:`together`.

    Args:
        wanted: the recipe's.
        num_classes: C.
        classes: names of the data's C classes, in whose order the teacher then answers; None: nobody knows them.
        data: whose mean and deviation several teachers take where nothing says theirs.

    Raises:
        Unavailable: published weights, or those of an address, cannot be had.
        UserError: no weights; weights of another architecture, for other classes, or not finite.
    """
    if wanted.others:
        return together([make_teacher(one, num_classes, classes) for one in wanted.each()], data)
    need_weights(wanted, "teacher")
    if wanted.weights is None and wanted.model and not brings_weights(wanted.model, wanted.options):
        raise UserError(
            f"teacher {wanted.model} has no weights: give teacher.weights=FILE, or teacher.train={{}} to train it"
        )
    note = None
    with _named("teacher"), _or_trained(wanted):
        if classes is None:
            network = load_teacher(wanted.weights, num_classes, model=wanted.model, options=wanted.options)
        else:
            network, note = _load_for(classes, wanted, "teacher")
            network.requires_grad_(False).eval()
        check_finite(network)
    mean, std = (getattr(wanted, name) or _channels(network, name) for name in ("mean", "std"))
    return Teacher(network, wanted, mean, std, weights_hash(network), note)


def together(teachers: Sequence[Teacher], data: ShardSet | None) -> Teacher:
    """Several teachers as one: :class:`kdstream.models.ensemble.Ensemble`.

    Args:
        teachers: one or more, for the same classes.
        data: whose mean and deviation those take that have none of their own.
    """
    if len(teachers) == 1:
        return teachers[0]
    of_data = (None, None) if data is None else (data.mean, data.std)
    statistics = [(one.mean or of_data[0], one.std or of_data[1]) for one in teachers]
    known = [(mean, std) for mean, std in statistics if mean is not None and std is not None]
    if len(known) < len(statistics):
        raise UserError("several teachers: nothing says a teacher's mean and std: give them, as teacher.mean")
    network = Ensemble([one.network for one in teachers], known).eval().requires_grad_(False)
    first = teachers[0].settings
    taps = {name: within_first(path) for name, path in first.taps.items()}
    notes = "; ".join(one.note for one in teachers if one.note)
    whole = settings.Teacher(taps=taps)
    return Teacher(network, whole, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), weights_hash(network), notes or None)


def trained_here(wanted: settings.Teacher) -> settings.Teacher | None:
    """The teacher as ``teacher.train`` trains it; None where it is given by weights that it does not stand in for.

    Raises:
        UserError: unknown published weights.
    """
    if wanted.train is None or not (wanted.weights is None or is_published(wanted.weights)):
        return None
    if wanted.weights is None:
        return wanted
    spec = {key: value for key, value in find(wanted.weights).network.items() if key != "num_classes"}
    name = spec.pop("name")
    # What the recipe says of the published one's images and classes does not hold for another.
    others = {"weights": None, "classes": None, "mean": None, "std": None}
    return wanted.model_copy(update={**others, "model": name, "options": {**wanted.options, **spec}})


def _load_for(classes: Sequence[str], wanted: settings.Model, role: str) -> tuple[nn.Module, str | None]:
    names = {"choice": wanted.classes, "option": f"{role}.classes", "count_option": "data.num_classes"}
    network, note = load_for(classes, wanted.weights, model=wanted.model, options=wanted.options, **names)
    return network, None if note is None else f"{role}: {note}"


def tapped(network: nn.Module, taps: Sequence[str], wanted: settings.Model) -> Tapped:
    """The network with the taps that the terms of a loss ask for, by its own names or by the recipe's paths.

    Raises:
        UserError: a tap that neither knows.
    """
    known = {**taps_of(network), **wanted.taps}
    names = list(dict.fromkeys(name for tap in taps for name in spelled_out(tap, known)))
    if not wanted.taps:
        return Tapped(network, names)
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(f"unknown tap {missing[0]!r}: known are {', '.join(known)}; the recipe's taps: can add it")
    return Tapped(network, {name: known[name] for name in names})


def need_weights(wanted: settings.Model, role: str) -> None:
    """That the weights which a recipe names exist, as far as can be said without reading or downloading them.

    Raises:
        UserError: neither a file nor a folder nor an address; ``role`` ("student", "teacher") names the place.
    """
    if wanted.weights is not None:
        with _named(f"{role}.weights"):
            check_weights(wanted.weights)


def check_finite(network: nn.Module) -> None:
    """That a network's weights can give an answer at all.

    Raises:
        UserError: values that are not finite, or a variance below zero; names the tensor.
    """
    masks = {name for name, _ in network.named_buffers() if not name.rpartition(".")[2].startswith("running_")}
    for name, value in network.state_dict().items():
        # A mask of attention, which is a buffer, may well be infinite.
        wrong = value.isnan() if name in masks else ~value.isfinite()
        if bad := int(wrong.sum()):
            what = f"{bad} of the {value.numel()} values of {name!r} are not finite (NaN or infinite)"
        elif name.rpartition(".")[2] == "running_var" and bool((value < 0).any()):
            what = f"the variance {name!r} is below zero"
        else:
            continue
        raise UserError(f"{what}: the weights are damaged, or of a training that failed; take others")


@contextlib.contextmanager
def _or_trained(wanted: settings.Teacher) -> Iterator[None]:
    """Says of published weights that cannot be had what else there is."""
    try:
        yield
    except Unavailable as error:
        if is_published(wanted.weights) and wanted.train is None:
            raise Unavailable(f"{error}, or say how to train such a teacher here, as teacher.train={{}}") from error
        raise


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Says in every message which part of the recipe it is about."""
    try:
        yield
    except UserError as error:
        kind = Unavailable if isinstance(error, Unavailable) else UserError
        raise kind(f"{place}: {error}") from error


def _channels(network: nn.Module, name: Literal["mean", "std"]) -> tuple[float, float, float] | None:
    """The ``mean`` or ``std`` that came with the weights; None where none did."""
    values = about_of(network)[name]
    if values is None:
        return None
    red, green, blue = values
    return red, green, blue
