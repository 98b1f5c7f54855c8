"""The student to train and the teacher to learn from, as a recipe describes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdstream import recipe as settings
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import load_student
from kdstream.models.taps import Tapped
from kdstream.models.weights import load_weights, weights_hash
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
        self.register_buffer("scale", (torch.tensor(data.std) / torch.tensor(std)).view(3, 1, 1))
        self.register_buffer(
            "shift", ((torch.tensor(data.mean) - torch.tensor(mean)) / torch.tensor(std)).view(3, 1, 1)
        )

    @property
    def module(self) -> nn.Module:
        """The plain network."""
        return self.network.module

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
    mean, std = wanted.mean, wanted.std
    if wanted.weights is not None and _is_export(wanted.weights):
        network = _exported(wanted, num_classes, "teacher")
        mean, std = mean or getattr(network, "mean", None), std or getattr(network, "std", None)
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


def _is_export(path: str) -> bool:
    return Path(path).is_dir() or Path(path).with_suffix(".json").is_file()


def _exported(wanted: settings.Model, num_classes: int, role: str) -> nn.Module:
    network = load_student(wanted.weights or "")
    found = network.spec["num_classes"]
    if found != num_classes:
        raise UserError(f"{role} {wanted.weights} is for {found} classes, the data has {num_classes}")
    if wanted.model is not None and network.spec["name"] != wanted.model:
        raise UserError(f"{role} {wanted.weights} is a {network.spec['name']}, the recipe says {wanted.model}")
    return network
