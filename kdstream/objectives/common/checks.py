"""Checks that the objectives share, of settings and of what the networks give; each failure is one clear line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.term import Task
from kdstream.safe_yaml import LARGEST


def _shown(value: Any) -> str:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return repr(value)
        return f"the text {value!r} (remove the quotes; YAML reads 1e-3 as text, write 0.001)"
    return repr(value) if not isinstance(value, int) or abs(value) < LARGEST else "a number of more than 64 bits"


def _is_number(value: Any) -> bool:
    """Whether it is a finite real number, no bool, and within 64 bits where it is whole."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return abs(value) < LARGEST if isinstance(value, Integral) else math.isfinite(value)


def number(owner: str, name: str, value: Any, *, above: float | None = None, at_least: float | None = None) -> float:
    """``value`` as a finite float within its range.

    Args:
        owner: whose setting it is, for the message ("kd", "loss.kd").
        name: the setting.
        value: any real number; bool and text are refused.
        above: exclusive lower bound.
        at_least: inclusive lower bound.

    Raises:
        UserError: no finite number, or out of range.
    """
    bound = f" > {above:g}" if above is not None else f" >= {at_least:g}" if at_least is not None else ""
    if not _is_number(value) or (above is not None and value <= above) or (at_least is not None and value < at_least):
        raise UserError(f"{owner}: {name} must be a finite number{bound}, got {_shown(value)}")
    return float(value)


def whole(owner: str, name: str, value: Any, *, at_least: int) -> int:
    """``value`` as an int >= ``at_least``; a float without fraction (2.0) counts as whole.

    Raises:
        UserError: no whole number, or too small.
    """
    is_whole = _is_number(value) and (isinstance(value, Integral) or float(value).is_integer())
    if not is_whole or not at_least <= value < LARGEST:
        raise UserError(f"{owner}: {name} must be a whole number >= {at_least}, got {_shown(value)}")
    return int(value)


def sequence(owner: str, name: str, value: Any) -> tuple[Any, ...]:
    """``value`` as a tuple; only real lists and tuples count, not text.

    Raises:
        UserError: anything else.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UserError(f"{owner}: {name} must be a list, got {_shown(value)}")
    return tuple(value)


def tap_names(owner: str, name: str, value: Any) -> tuple[str, ...]:
    """Tap names from a list, or from one name alone.

    Raises:
        UserError: empty, no text, or a name twice.
    """
    taps = (value,) if isinstance(value, str) else sequence(owner, name, value)
    if not taps or not all(isinstance(tap, str) and tap for tap in taps):
        raise UserError(f"{owner}: {name} must be a list of tap names such as [block1, block2], got {_shown(value)}")
    if len(set(taps)) < len(taps):
        raise UserError(f"{owner}: {name} names a tap twice: {', '.join(taps)}")
    return taps


def tap_pairs(owner: str, taps: Any, teacher_taps: Any | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The student's and the teacher's taps, paired by position; the teacher's default to the student's.

    Raises:
        UserError: see :func:`tap_names`; or the two lists differ in length.
    """
    student = tap_names(owner, "taps", taps)
    teacher = student if teacher_taps is None else tap_names(owner, "teacher_taps", teacher_taps)
    if len(student) != len(teacher):
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
    """That every process sees so many samples at a time that the term has a gradient.

    Args:
        owner: the term.
        task: tells how many samples a process sees; nothing is checked where it does not.
        at_least: samples.
        why: what takes so many, for the message.
        or_else: another cure than a larger batch_size.

    Raises:
        UserError: fewer.
    """
    if task.smallest_batch is not None and task.smallest_batch < at_least:
        raise UserError(
            f"{owner}: {why} takes at least {at_least} samples in each process, the smallest batch gives one "
            f"{task.smallest_batch}: raise batch_size, use fewer processes{or_else}"
        )


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
