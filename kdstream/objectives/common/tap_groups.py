"""Groups among a term's taps (``block*``, ``block.last``) become the taps that student and teacher have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kdstream.errors import UserError
from kdstream.tap_names import is_group, spelled_out


def has_groups(taps: Iterable[str]) -> bool:
    """Whether how many taps these are depends on the network."""
    return any(map(is_group, taps))


def need_one_a_tap(owner: str, name: str, values: Sequence[Any], taps: Sequence[str]) -> None:
    """That a list has one value a tap; as long as groups stand among the taps, anything goes.

    Raises:
        UserError: another number.
    """
    if not has_groups(taps) and len(values) != len(taps):
        raise UserError(f"{owner}: {name} must be one a tap, got {len(values)} for {len(taps)} taps")


def paired(
    owner: str, student: Sequence[str], teacher: Sequence[str], ours: Iterable[str], theirs: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The taps that two lists with groups stand for, paired by position.

    Where a group of the student meets one of the teacher and they have a different number of blocks, the deepest
    ones are paired, as many as both have (mdistiller's rule; the published pairs have equally many).

    Args:
        owner: the term, for messages.
        student, teacher: taps and groups.
        ours, theirs: the names that the networks have.

    Raises:
        UserError: nothing to pair; lists that do not pair up; a tap that stands there twice.
    """
    ours, theirs = list(ours), list(theirs)
    try:
        if len(student) == len(teacher) and all(map(lambda s, t: is_group(s) == is_group(t), student, teacher)):
            pairs = [
                pair
                for s, t in zip(student, teacher, strict=True)
                for pair in _deepest(spelled_out(s, ours), spelled_out(t, theirs))
            ]
            found = tuple(s for s, _ in pairs), tuple(t for _, t in pairs)
        else:
            found = _names(student, ours), _names(teacher, theirs)
    except UserError as error:
        raise UserError(f"{owner}: {error}") from error
    if len(found[0]) != len(found[1]):
        counts = " and ".join(f"{len(names)} ({', '.join(names)})" for names in found)
        raise UserError(f"{owner}: taps and teacher_taps must pair up, got {counts}")
    for names in found:
        if len(set(names)) < len(names):
            raise UserError(f"{owner}: names a tap twice: {', '.join(names)}")
    return found


def _names(groups: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    return tuple(tap for name in groups for tap in spelled_out(name, known))


def _deepest(student: tuple[str, ...], teacher: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    count = min(len(student), len(teacher))
    return zip(student[-count:], teacher[-count:], strict=True)


def settling(setup: Callable[..., None]) -> Callable[..., None]:
    """A term's ``setup`` behind the step that spells out the groups among its taps, by what the probes have."""

    @functools.wraps(setup)
    def settled(self: Any, task: Any) -> None:
        student, teacher = tuple(self.student_taps), tuple(self.teacher_taps)
        if has_groups(student + teacher) and task.teacher_outputs is not None:
            owner = type(self).__module__.rpartition(".")[2]
            features = task.student_outputs.features, task.teacher_outputs.features
            self.student_taps, self.teacher_taps = paired(owner, student, teacher, *features)
        setup(self, task)

    return settled
