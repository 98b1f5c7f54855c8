"""Checks that the objectives share, of settings together and of what the networks give; a failure is one clear line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.common.tap_groups import has_groups
from kdstream.objectives.term import Network, Task


def tap_pairs(
    owner: str, taps: Sequence[str], teacher_taps: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The student's and the teacher's taps, paired by position; the teacher's default to the student's.

    Raises:
        UserError: the two lists differ in length, and no group among them may still make up for it.
    """
    student, teacher = tuple(taps), tuple(taps if teacher_taps is None else teacher_taps)
    if len(student) != len(teacher) and not has_groups(student + teacher):
        raise UserError(f"{owner}: taps and teacher_taps must pair up, got {len(student)} and {len(teacher)} names")
    return student, teacher


def need_teacher(owner: str, task: Task) -> Outputs:
    """The teacher's answer to the probe batch.

    Raises:
        UserError: the job has no teacher.
    """
    if task.teacher_outputs is None:
        raise UserError(f"{owner}: needs a teacher, but the job has none; name one or drop {owner} from the loss")
    return task.teacher_outputs


def teacher_network(owner: str, task: Task) -> Network:
    """The teacher itself.

    Raises:
        UserError: the job has none.
    """
    if task.teacher is None:
        raise UserError(f"{owner}: needs a teacher, but the job has none; name one or drop {owner} from the loss")
    return task.teacher


def need_weight(owner: str, **weights: float) -> None:
    """That a weight of a term's parts is above 0.

    Raises:
        UserError: all are 0.
    """
    if not any(weights.values()):
        names = " and ".join([", ".join([*weights][:-1]), [*weights][-1]])
        count = "both" if len(weights) == 2 else "all"
        raise UserError(f"{owner}: {names} are {count} 0, which leaves nothing to learn; set one > 0")


def need_classes(owner: str, task: Task, at_least: int, why: str) -> None:
    """That there are so many classes that the term has a gradient.

    Raises:
        UserError: fewer; ``why`` says what takes more.
    """
    classes = task.student_outputs.logits.shape[-1]
    if classes < at_least:
        raise UserError(
            f"{owner}: {why} needs at least {at_least}, the student has {classes}: choose another objective"
        )


def need_samples(owner: str, task: Task, at_least: int, why: str, or_else: str = "") -> None:
    """That a term ``over_batch`` sees so many samples at a time that it has a gradient.

    Args:
        owner: the term.
        task: tells how many samples are compared at least; nothing is checked where it does not.
        at_least: samples.
        why: what takes so many, for the message.
        or_else: another cure than a larger batch_size.

    Raises:
        UserError: fewer.
    """
    smallest = task.smallest_related
    if smallest is None or smallest >= at_least:
        return
    if task.relations == "global":
        seen, cures = f"samples, the smallest batch has {smallest}", "raise batch_size"
    else:
        seen = f"samples in each process, the smallest batch gives one {smallest}"
        cures = "raise batch_size, use fewer processes or relations: global"
    raise UserError(f"{owner}: {why} takes at least {at_least} {seen}: {cures}{or_else}")


def need_positions(owner: str, tap: str, teacher_tap: str, student: Tensor, teacher: Tensor) -> None:
    """That two feature maps [N,C,H,W], at the smaller size of both, have more than one position.

    Raises:
        UserError: a single one, where a map of unit length is the same whatever the network does.
    """
    if all(min(sizes) == 1 for sizes in zip(student.shape[2:], teacher.shape[2:], strict=True)):
        raise UserError(
            f"{owner}: compares where maps are active, but the student's {tap!r} ({_size(student)}) and the teacher's "
            f"{teacher_tap!r} ({_size(teacher)}) share one position only: choose earlier taps, or larger images"
        )


def _size(maps: Tensor) -> str:
    return "x".join(map(str, maps.shape[2:]))


def need_same_classes(owner: str, task: Task) -> None:
    """That student and teacher tell the same number of classes apart, at least two.

    Raises:
        UserError: no teacher, another number of classes, or a single one.
    """
    teacher = need_teacher(owner, task).logits.shape[-1]
    student = task.student_outputs.logits.shape[-1]
    if student != teacher:
        raise UserError(
            f"{owner}: the student has {student} classes and the teacher {teacher}; it compares their logits, so "
            "choose a teacher of the same classes"
        )
    need_classes(owner, task, 2, "an answer to learn from")


def need_maps(owner: str, tap: str, teacher_tap: str, student: Tensor, teacher: Tensor) -> None:
    """That both taps are feature maps [N,C,H,W].

    Raises:
        UserError: another number of dimensions.
    """
    for role, name, value in (("student", tap, student), ("teacher", teacher_tap, teacher)):
        if value.ndim != 4:
            raise UserError(
                f"{owner}: tap {name!r} of the {role} has shape {list(value.shape)}, not that of a feature map "
                "[N,C,H,W]; choose another tap"
            )


def is_composed(spec: Mapping[str, Any]) -> bool:
    """Whether a network's ``spec`` is of what a term makes of a student (branches, a reused classifier), which is no
    architecture to build anew with fresh weights."""
    name = str(spec.get("name", ""))
    return name.startswith("kdstream.models.") and ":" in name
