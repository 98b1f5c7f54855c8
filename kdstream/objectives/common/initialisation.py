"""The phase by which FSP, AB and FT initialise before the main training: its settings, checked."""

from __future__ import annotations

from typing import Any, Literal

from kdstream.errors import UserError
from kdstream.objectives.common.checks import number, sequence, whole
from kdstream.objectives.term import Phase


def initial_phase(
    owner: str,
    name: str,
    *,
    epochs: Any,
    lr: Any,
    milestones: Any,
    gamma: Any,
    loss: str = "forward",
    trains: Literal["student", "term"] = "student",
) -> Phase:
    """The phase ``<owner>.<name>``.

    Args:
        owner: the term, for messages.
        name: of the phase.
        epochs: its length, a whole number >= 1.
        lr: its learning rate, > 0.
        milestones: its epochs after which the rate is multiplied by ``gamma``, increasing; may be empty.
        gamma: the factor, > 0.
        loss, trains: see :class:`~kdstream.objectives.term.Phase`.

    Raises:
        UserError: a setting out of range.
    """
    steps = tuple(whole(owner, "milestones", step, at_least=1) for step in sequence(owner, "milestones", milestones))
    if list(steps) != sorted(set(steps)):
        raise UserError(f"{owner}: milestones must increase, got {list(steps)}")
    return Phase(
        f"{owner}.{name}",
        whole(owner, "epochs", epochs, at_least=1),
        number(owner, "lr", lr, above=0),
        steps,
        number(owner, "gamma", gamma, above=0),
        loss,
        trains,
    )
