"""Order: what a claim says of trainings: that one value, or difference of values, is larger than another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kdstream.errors import UserError
from kdstream.registry import nearest
from kdstream.terminal import quoted


@dataclass(frozen=True)
class Order:
    """What a paper says, in a form that trainings decide.

    Attributes:
        text: as it stands in the file, ``ckd > kd``.
        weights: row -> how often it counts in left less right; the order holds where that sum is above 0.
        measure: of the rows; None = the table's.
        printed: the paper's effect, in words; empty where it prints none.
    """

    text: str
    weights: Mapping[str, int]
    measure: str | None = None
    printed: str = ""

    @classmethod
    def read(cls, text: str, rows: Iterable[str], what: str, measure: str | None = None, printed: str = "") -> Order:
        """That of ``LEFT > RIGHT``: each side a row, or several with ``+`` and ``-`` between them, all with blanks.

        Args:
            text: to be read.
            rows: the keys that there are.
            what: names the place in messages.
            measure, printed: see the class.

        Raises:
            UserError: it is none.
        """
        rows = list(rows)
        left, sign, right = text.partition(" > ")
        weights: dict[str, int] = {}
        for side, one in ((left, 1), (right, -1)):
            names = side.split()
            shape = f"{what}: order {quoted(text)}: it is as 'ckd > kd', or 'a - b > c - d', with blanks between"
            if not sign or len(names) % 2 == 0 or any(name not in ("+", "-") for name in names[1::2]):
                raise UserError(shape)
            for name, joined in zip(names[::2], ["+", *names[1::2]], strict=True):
                if name not in rows:
                    raise UserError(f"{what}: order {quoted(text)}: no row {quoted(name)}: {nearest(name, rows)}")
                weights[name] = weights.get(name, 0) + (one if joined == "+" else -one)
        if not any(weights.values()):
            raise UserError(f"{what}: order {quoted(text)}: both sides are the same")
        return cls(" ".join(text.split()), weights, measure, printed)
