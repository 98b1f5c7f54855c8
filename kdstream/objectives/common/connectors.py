"""What SRRL, SimKD and IJCKD share: the student's last map on its way to the teacher's classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.notes import classifier_path_of, spec_of, taps_of
from kdstream.objectives.common.checks import is_composed, need_teacher, teacher_network
from kdstream.objectives.common.features import pooled
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.term import Build, Task, Term

if TYPE_CHECKING:
    from kdstream.models.joint import JointNetwork

JOINT = "kdstream.models.joint:JointNetwork"
HEAD = "kdstream.models.joint:ReusedHead"


def map_distance(connected: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the connected map [N,D,h,w] and the teacher's [N,D,H,W], which is average-pooled to
    the other's size (SimKD's rule)."""
    if teacher.shape[2:] != connected.shape[2:]:
        teacher = pooled(teacher, connected.shape[2:])
    return F.mse_loss(at_least_float32(connected), at_least_float32(teacher))


def logit_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of logits [N,C], over samples and classes."""
    return F.mse_loss(at_least_float32(student), at_least_float32(teacher))


# ------------------------------------------------------------------------------------- the map before the classifier


@dataclass(frozen=True)
class FeatureMap:
    """Where a network has a feature map.

    Attributes:
        path: of the module that gives it; ``:input`` after it where it is the module's input.
        shape: (channels, H, W).
    """

    path: str
    shape: tuple[int, ...]


def feature_maps(network: nn.Module, image: Tensor) -> tuple[list[tuple[FeatureMap, Tensor]], Tensor | None]:
    """All maps [N,C,H,W] between the network's modules.

    Args:
        network: images -> logits; it runs once, in eval mode and without gradient.
        image: [N,3,H,W].

    Returns:
        The maps in the order of the computation, each with its spatial mean [N,C]; and what the linear classifier
        reads, [N,D] (None: there is none).
    """
    found: list[tuple[FeatureMap, Tensor]] = []
    read: list[Tensor] = []
    classifier = classifier_path_of(network)

    def keep(path: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point():
            found.append((FeatureMap(path, tuple(value.shape[1:])), value.float().mean(dim=(2, 3))))

    def before(path: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs:
            keep(f"{path}:input", inputs[0])
            if path == classifier:
                read.append(inputs[0].float().flatten(1))

    def after(path: str, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        keep(path, output)

    hooks = []
    for path, module in network.named_modules():
        if path:
            hooks.append(module.register_forward_pre_hook(partial(before, path)))
            hooks.append(module.register_forward_hook(partial(after, path)))
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(image)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return found, read[-1] if read else None


def pooled_maps(network: nn.Module, image: Tensor) -> list[FeatureMap]:
    """Where the map stands whose spatial mean the network's classifier reads, in the order of the computation; empty:
    the classifier reads something else.

    Only places with the largest map count, since the result of the pooling has the same mean.
    """
    maps, read = feature_maps(network, image)
    same = [place for place, mean in maps if read is not None and mean.shape == read.shape and _close(mean, read, 1e-3)]
    largest = max((place.shape[1:] for place in same), key=math.prod, default=())
    return [place for place in same if place.shape[1:] == largest]


def _close(value: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((value - expected).abs().max() <= tolerance * expected.abs().max())


# ----------------------------------------------------------------------------------------------------- their terms


class ReusedClassifier(Term):
    """What the terms that use the teacher's classifier share; their settings come checked.

    Args:
        owner: the term, for messages.
        connector: kernels of the convolutions to the classifier's width, each with BatchNorm and ReLU.
        mid_channels: width between them; None: half of the classifier's.
        taps: the student's map, by tap or module path; None: the map that its own classifier reads, averaged. With an
            earlier map, the layers behind it stay in the network, unused.
        teacher_taps: the teacher's map.
        compares_maps: whether the term compares the two maps. The teacher's must be the one that its classifier
            reads, averaged, then.
    """

    def __init__(
        self,
        owner: str,
        connector: str,
        mid_channels: int | None,
        taps: str | None,
        teacher_taps: str,
        compares_maps: bool,
    ):
        super().__init__()
        self.owner, self.compares_maps = owner, compares_maps
        self.kernels = [int(kernel.split("x")[0]) for kernel in connector.split("-")]
        self.mid_channels, self.tap, self.teacher_taps = mid_channels, taps, (teacher_taps,)
        self.advice = ""

    def need_network(self, teacher: nn.Module | None) -> nn.Module:
        """The teacher.

        Raises:
            UserError: the job has none.
        """
        if teacher is None:
            raise UserError(f"{self.owner}: needs a teacher, but the job has none; name one or drop {self.owner}")
        return teacher

    def find_maps(self, student: nn.Module, teacher: nn.Module, image: Tensor) -> tuple[FeatureMap, FeatureMap]:
        """The student's map to connect, and the one that the teacher's classifier reads, averaged.

        Raises:
            UserError: a classifier that reads no averaged map; a tap that is no map of the student.
        """
        places = pooled_maps(teacher, image)
        if not places:
            raise UserError(
                f"{self.owner}: the teacher's classifier reads no averaged feature map: it cannot be reused"
            )
        self.advice = _advice(teacher, places)
        if self.tap is None:
            own = pooled_maps(student, image)
            if not own:
                raise UserError(
                    f"{self.owner}: the student's classifier reads no averaged feature map; name one by taps"
                )
            return own[-1], places[-1]
        known = taps_of(student)
        maps = {place.path: place for place, _ in feature_maps(student, image)[0]}
        path = known.get(self.tap, self.tap)
        if path not in maps:
            names = ", ".join(name for name, path in known.items() if path in maps)
            raise UserError(
                f"{self.owner}: the student has no feature map {self.tap!r}; its maps are {names or 'none'}"
            )
        return maps[path], places[-1]

    def head_settings(self, ours: tuple[int, ...], theirs: tuple[int, ...], classifier: nn.Linear) -> dict[str, Any]:
        """Those of :data:`HEAD`, for a student's and a teacher's map of these shapes [C,H,W]."""
        smaller = [min(sizes) for sizes in zip(ours[1:], theirs[1:], strict=True)]
        return {
            "channels": ours[0],
            "width": classifier.in_features,
            "kernels": self.kernels,
            "mid_channels": self.mid_channels,
            "size": None if smaller == list(ours[1:]) else smaller,
            "bias": classifier.bias is not None,
        }

    def check_teacher(self, task: Task) -> None:
        """That the teacher's tap is a map and, where maps are compared, that its average is what the classifier reads.

        Raises:
            UserError: another map, or no map at all.
        """
        outputs, tap = need_teacher(self.owner, task), self.teacher_taps[0]
        maps, classifier = outputs.features[tap], teacher_network(self.owner, task).classifier
        if maps.ndim == 4 and not self.compares_maps:
            return  # only its size counts
        if maps.ndim == 4 and maps.shape[1] == classifier.in_features:
            with torch.no_grad():
                logits = classifier(maps.mean(dim=(2, 3)).to(classifier.weight))
            if _close(logits, outputs.logits.to(logits), 0.05):  # the answer may come from half precision
                return
        raise UserError(
            f"{self.owner}: the teacher's {tap!r} {list(maps.shape[1:])} is not the map that its classifier averages"
            f"{self.advice}"
        )


def _advice(teacher: nn.Module, places: list[FeatureMap]) -> str:
    """How a recipe names the map that the teacher's classifier averages."""
    paths = {place.path for place in places}
    names = [name for name, path in taps_of(teacher).items() if path in paths]
    if names:
        return f"; set teacher_taps: {names[-1]}"
    return f"; name that one in the recipe, teacher.taps={{map: '{places[-1].path}'}}, and here, teacher_taps: map"


class JointTerm(ReusedClassifier):
    """A term whose student is trained, evaluated and exported as backbone, connector and the teacher's classifier."""

    student_taps = ("connector",)

    exports = "the teacher's classifier in place of its own"

    def adapt(self, student: nn.Module, teacher: nn.Module | None, image: Tensor, build: Build) -> nn.Module:
        spec = spec_of(student)
        if spec["name"] == JOINT:
            raise UserError(
                f"{self.owner}: the student answers through a teacher's classifier already; start from a plain student "
                "and name one of simkd and ijckd in the loss"
            )
        if is_composed(spec):
            raise UserError(
                f"{self.owner}: another term has changed the student; name one of one, simkd and ijckd in the loss"
            )
        teacher = self.need_network(teacher)
        ours, theirs = self.find_maps(student, teacher, image)
        path_of_classifier, classes = classifier_path_of(teacher), spec["num_classes"]
        assert path_of_classifier is not None  # it reads a map
        classifier: Any = teacher.get_submodule(path_of_classifier)
        if classifier.out_features != classes:
            raise UserError(
                f"{self.owner}: the teacher's classifier has {classifier.out_features} classes, the data has {classes}"
            )
        head = self.head_settings(ours.shape, theirs.shape, classifier)
        path, _, side = ours.path.partition(":")
        joint: JointNetwork = build(JOINT, classes, backbone=spec, path=path, side=side or "output", head=head)
        joint.start_from(student, classifier)
        # An earlier term may have named further ones.
        joint.taps = {name: f"backbone.module.{path}" for name, path in taps_of(student).items()} | joint.taps
        return joint

    def setup(self, task: Task) -> None:
        self.check_teacher(task)

    def feature_distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        """l_fm, unweighted."""
        return map_distance(student.features["connector"], teacher.features[self.teacher_taps[0]])
