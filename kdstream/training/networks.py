"""The student to train and the teacher to learn from, as a recipe describes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdstream import recipe as settings
from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models import build
from kdstream.models.export import load_student
from kdstream.models.taps import Tapped
from kdstream.models.weights import load_weights
from kdstream.stream.shards import ShardSet
from kdstream.types import Outputs


@dataclass
class Teacher:
    """A trained teacher.

    Attributes:
        network: images -> logits.
        settings: the recipe's.
        mean, std: what it was trained with; None = the data set's.
        hash: of its weights.
    """

    network: nn.Module
    settings: settings.Teacher
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    hash: str


class Converted(nn.Module):
    """A teacher that takes images standardised for the student and converts them to its own mean and deviation.

    Args:
        network: the teacher, images -> Outputs.
        data: whose mean and std the incoming images were standardised with.
        mean, std: the teacher's.
    """

    def __init__(self, network: Tapped, data: ShardSet, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        # No deviation below 1e-6, as in kdstream.stream.normalize.standardise.
        theirs, ours = torch.tensor(std).clamp(min=1e-6), torch.tensor(data.std).clamp(min=1e-6)
        self.register_buffer("scale", (ours / theirs).view(3, 1, 1))
        self.register_buffer("shift", ((torch.tensor(data.mean) - torch.tensor(mean)) / theirs).view(3, 1, 1))

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


def make_student(wanted: settings.Model, num_classes: int) -> nn.Module:
    """The student, untrained or from the recipe's weights.

    Raises:
        UserError: no model named; weights that do not fit.
    """
    need_weights_file(wanted, "student")
    if wanted.weights is not None and _is_export(wanted.weights):
        return _exported(wanted, num_classes, "student")
    if wanted.model is None:
        raise UserError("student.model is missing: name a network, such as student=resnet20")
    network = build(wanted.model, num_classes, **wanted.options)
    if wanted.weights is not None:
        load_weights(network, wanted.weights)
    return network


def load_teacher(wanted: settings.Teacher, num_classes: int) -> Teacher:
    """The teacher from its weights.

    Raises:
        UserError: no weights; weights of another architecture or for other classes.
    """
    need_weights_file(wanted, "teacher")
    mean, std = wanted.mean, wanted.std
    if wanted.weights is not None and _is_export(wanted.weights):
        network = _exported(wanted, num_classes, "teacher")
        mean, std = mean or _channels(network, "mean"), std or _channels(network, "std")
    else:
        if wanted.model is None:
            raise UserError(f"teacher.model is missing: {wanted.weights} does not say which network it is for")
        network = build(wanted.model, num_classes, **wanted.options)
        if wanted.weights is not None:
            load_weights(network, wanted.weights)
        elif not wanted.options.get("weights"):
            raise UserError(
                f"teacher {wanted.model} has no weights: give teacher.weights=FILE, or teacher.train={{}} to train it"
            )
    network.requires_grad_(False)
    return Teacher(network, wanted, mean, std, weights_hash(network))


def tapped(network: nn.Module, taps: Sequence[str], wanted: settings.Model) -> Tapped:
    """The network with the taps that the terms of a loss ask for, by its own names or by the recipe's paths.

    Raises:
        UserError: a tap that neither knows.
    """
    names = list(dict.fromkeys(taps))
    if not wanted.taps:
        return Tapped(network, names)
    known = {**getattr(network, "taps", {}), **wanted.taps}
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(f"unknown tap {missing[0]!r}: known are {', '.join(known)}; the recipe's taps: can add it")
    return Tapped(network, {name: known[name] for name in names})


def need_weights_file(wanted: settings.Model, role: str) -> None:
    """That the weights which a recipe names exist.

    Raises:
        UserError: neither a file nor a folder; ``role`` ("student", "teacher") names the place.
    """
    if wanted.weights is not None and not (wanted.weights and Path(wanted.weights).exists()):
        raise UserError(f"{role}.weights: {wanted.weights!r}: no such file or folder")


def _is_export(path: str) -> bool:
    place = Path(path)
    return place.is_dir() or (place.suffix in (".json", ".safetensors") and place.with_suffix(".json").is_file())


def _exported(wanted: settings.Model, num_classes: int, role: str) -> nn.Module:
    network = load_student(wanted.weights or "", trust_code=_names_its_code(wanted))
    found = network.spec["num_classes"]
    if found != num_classes:
        raise UserError(f"{role} {wanted.weights} is for {found} classes, the data has {num_classes}")
    if wanted.model is not None and network.spec["name"] != wanted.model:
        raise UserError(f"{role} {wanted.weights} is a {network.spec['name']}, the recipe says {wanted.model}")
    return network


def _names_its_code(wanted: settings.Model) -> bool:
    """Whether the recipe itself says all that the export's description says, so that no code is run but what the
    recipe names. Anything else is :func:`load_student`'s to judge."""
    if wanted.model is None or ":" not in wanted.model:
        return False
    place = Path(wanted.weights or "")
    try:
        about = json.loads((place / "student.json" if place.is_dir() else place.with_suffix(".json")).read_bytes())
        spec = dict(about["spec"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    spec.pop("num_classes", None)
    return spec == {"name": wanted.model, **wanted.options}


def _channels(network: nn.Module, name: str) -> tuple[float, float, float] | None:
    """The export's ``mean`` or ``std``; None where it has none."""
    values = network.about.get(name)
    return None if values is None else tuple(values)
