"""What training and rehearsal do alike before the first step: the order of the terms' hooks, formats, phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kdstream import recipe as settings
from kdstream.batch import Batch, Outputs
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives import Task, WeightedTerm
from kdstream.recipe import Recipe
from kdstream.stream.plan import Plan
from kdstream.stream.stage import Chain
from kdstream.stream.stream import Stream
from kdstream.training.distiller import Distiller, Stage
from kdstream.training.networks import Converted, tapped


def prepare(
    network: nn.Module,
    wanted: settings.Model,
    teacher: Tapped | None,
    statistics: tuple[Sequence[float], Sequence[float]] | None,
    terms: Sequence[WeightedTerm],
    probe: Batch,
    train: ShardSet,
    recipe: Recipe,
    world: int,
) -> tuple[nn.Module, Tapped, Tapped | Converted | None]:
    """Let every term adapt the student, give it the taps that they read, and set the terms up; all on the CPU.

    Args:
        network: the plain student.
        wanted: the recipe's student, whose taps may name further ones.
        teacher: with the taps that the terms read; None where no term looks at it.
        statistics: mean and deviation that the teacher's images are standardised with.
        terms: of the loss.
        probe: two samples, standardised, with the teacher's answer.
        train: the training set.
        recipe: of the training.
        world: processes that train together.

    Returns:
        The adapted network, the same with taps, and the teacher as terms may ask it (standardised images -> Outputs).

    Raises:
        UserError: what the terms cannot work with; a teacher whose answer is not finite.
    """
    smallest = Plan(len(train), recipe.batch_size).smallest_slice(world)
    if smallest == 0:
        raise UserError(
            "the smallest batch of an epoch has fewer samples than there are processes: raise batch_size, or use fewer "
            "processes"
        )
    if probe.teacher is not None:
        for name, value in {"logits": probe.teacher.logits, **probe.teacher.features}.items():
            if not value.isfinite().all():
                raise UserError(
                    f"the teacher's answer to the first images is not finite ({name}): its weights are damaged, its "
                    "mean and std do not fit, or its precision is too low"
                )
    plain = None if teacher is None else teacher.module
    for _, _, term in terms:
        network = term.adapt(network, plain, probe.image, build)
    student = tapped(network, [tap for _, _, term in terms for tap in term.student_taps], wanted)
    with torch.no_grad():
        student_outputs = student.eval()(probe.image).detach()
    asked: Tapped | Converted | None = teacher
    if teacher is not None and statistics is not None and statistics != (train.mean, train.std):
        asked = Converted(teacher, train, *statistics)
    task = Task(
        num_classes=train.num_classes,
        num_samples=len(train),
        epochs=recipe.epochs,
        student_outputs=student_outputs,
        teacher_outputs=probe.teacher,
        student=student,
        teacher=asked,
        labels=torch.tensor(train.labels),
        build=build,
        mean=train.mean,
        std=train.std,
        smallest_batch=smallest,
    )
    for _, _, term in terms:
        term.setup(task)
    return network, student, asked


def memory_format(recipe: Recipe, device: torch.device) -> torch.memory_format:
    """Of images and weights: the recipe's, or the one that suits the device."""
    wanted = device.type == "cuda" if recipe.channels_last is None else recipe.channels_last
    return torch.channels_last if wanted else torch.contiguous_format


def answering(
    teacher: Callable[[Tensor], Outputs], accelerator: Accelerator, layout: torch.memory_format
) -> Callable[[Tensor], Outputs]:
    """The teacher in the training's precision and memory format; its answers in float32."""
    if accelerator.mixed_precision == "no" and layout == torch.contiguous_format:
        return teacher

    def answer(images: Tensor) -> Outputs:
        with accelerator.autocast():
            return teacher(images.contiguous(memory_format=layout)).map(Tensor.float)

    return answer


def probes(
    train: ShardSet, recipe: Recipe, given: Mapping[str, Any], chain: Chain, device: torch.device
) -> tuple[Batch, Callable[[], Batch]]:
    """The batches with which networks and losses are tried before the first step, the same on every process.

    Returns:
        A batch of two samples, made on the CPU, and a function that makes a larger one on ``device``.
    """

    def first(count: int, place: torch.device | str) -> Batch:
        count = min(count, len(train))
        return next(iter(Stream(train, count, recipe.seed, rank=0, world=1, device=place, given=given) | chain))

    return first(2, "cpu"), partial(first, 64, device)


def begin(distiller: Distiller, stage: Stage, probe: Batch, larger: Callable[[], Batch]) -> list[nn.Parameter]:
    """Make ``stage`` the distiller's current one; the parameters to optimise.

    Args:
        distiller, stage, probe: see :meth:`Distiller.begin`.
        larger: gives a larger probe, for a loss that finds nothing to learn from in the first.

    Raises:
        UserError: a loss that can be no loss of what is trained.
    """
    parameters = distiller.begin(stage, probe)
    if stage.trains == "nothing":
        return parameters
    if parameters and not distiller.reached:
        distiller.look(larger())
    if not distiller.reached:
        raise UserError(f"the loss of phase {stage.name} depends on nothing that is trained")
    return parameters
