"""From a plain student and terms to a student with taps and terms that are set up: the order of the terms' hooks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kdstream import recipe as settings
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives import Task, WeightedTerm
from kdstream.stream.shards import ShardSet
from kdstream.training.networks import Converted, tapped
from kdstream.types import Batch


def prepare(
    network: nn.Module,
    wanted: settings.Model,
    teacher: Tapped | None,
    statistics: tuple[Sequence[float], Sequence[float]] | None,
    terms: Sequence[WeightedTerm],
    probe: Batch,
    train: ShardSet,
    epochs: int,
    smallest_batch: int | None = None,
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
        epochs: of the main phase.
        smallest_batch: see :class:`~kdstream.objectives.Task`.

    Returns:
        The adapted network, the same with taps, and the teacher as terms may ask it (standardised images -> Outputs).

    Raises:
        UserError: what the terms cannot work with.
    """
    if smallest_batch == 0:
        raise UserError(
            "the smallest batch of an epoch has fewer samples than there are processes: raise batch_size, or use fewer "
            "processes"
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
        epochs=epochs,
        student_outputs=student_outputs,
        teacher_outputs=probe.teacher,
        student=student,
        teacher=asked,
        labels=torch.tensor(train.labels),
        build=build,
        mean=train.mean,
        std=train.std,
        smallest_batch=smallest_batch,
    )
    for _, _, term in terms:
        term.setup(task)
    return network, student, asked
