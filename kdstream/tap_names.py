"""Names of taps that stand for what a network has: ``block*`` and ``block*.pre`` for all of them, ``block.last``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kdstream.errors import UserError

TWO_HEADS = ("logits.label", "logits.teacher")
"""Of networks with two heads: the logits of the head that labels train, and of the one that the teacher trains."""
_GROUP = re.compile(r"block(\*|\.last)(\.pre)?")
_MEMBER = re.compile(r"block(\d+)(\.pre)?")


def is_group(name: str) -> bool:
    """Whether it stands for other names."""
    return _GROUP.fullmatch(name) is not None


def spelled_out(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """The taps that a name stands for.

    ``block*`` is every ``block1``, ``block2``, ...: the maps between the stem and the pooling, as many as the network
    has stages. ``block.last`` is the last of these. Both take ``.pre``.

    Args:
        name: a tap, or one of the above.
        known: the names to choose from.

    Returns:
        From shallow to deep; any other name as it is.

    Raises:
        UserError: nothing known is a block.
    """
    group = _GROUP.fullmatch(name)
    if group is None:
        return (name,)
    known = list(known)
    members = [member for member in map(_MEMBER.fullmatch, known) if member and member[2] == group[2]]
    found = [member[0] for member in sorted(members, key=lambda member: int(member[1]))]
    if not found:
        kind = group[2] or ""
        raise UserError(
            f"unknown tap {name!r}: none of the taps ({', '.join(known) or 'none'}) is a block{kind}; name "
            f"block1{kind}, ... by module path in the recipe's student.taps or teacher.taps, or name other taps"
        )
    return tuple(found) if group[1] == "*" else (found[-1],)
