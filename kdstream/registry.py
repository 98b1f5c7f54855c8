"""From a name to an object: short names of a table, or the dotted path of anybody's own code."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kdstream.errors import UserError

MOST_NAMES = 60
"""So many names at most does a message list: a module may hold thousands."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error message about ``name``: the nearest known name, or all of them when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join([*known[:MOST_NAMES], *(['...'] if known[MOST_NAMES:] else [])]) or 'none'}"


def import_object(path: str, what: str) -> Any:
    """The object at ``package.module:attribute``.

    Args:
        path: dotted path with a colon before the attribute.
        what: the kind of thing that is looked up, for messages ("stage", "objective", ...).

    Raises:
        UserError: the module cannot be imported or has no such attribute.
    """
    module_name, _, attribute = path.partition(":")
    if not attribute or not all(module_name.split(".")):
        raise UserError(f"{what} {path!r} is no dotted path: write package.module:name")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{what} {path!r}: cannot import module {module_name!r} ({error}); run from the folder that holds it "
            "or install it"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = (name for name in vars(found) if not name.startswith("_")) if hasattr(found, "__dict__") else ()
            raise UserError(f"{what} {path!r}: {module_name} has no {attribute!r}; {nearest(part, names)}")
        found = getattr(found, part)
    return found


class Registry(Mapping[str, str]):
    """Short names of one kind of object. Objects are imported when they are asked for, not before.

    Args:
        what: the kind, as messages call it ("objective", "stage", "model").
        table: short name -> dotted path ``package.module:attribute``.
    """

    def __init__(self, what: str, table: Mapping[str, str]):
        self.what = what
        self._table = dict(table)

    def __getitem__(self, name: str) -> str:
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def find(self, name: str) -> Any:
        """The object called ``name``: a short name of the table, or any dotted path with a colon.

        Raises:
            UserError: an unknown name; the message proposes the nearest one.
        """
        if ":" in name:
            return import_object(name, self.what)
        if name not in self._table:
            raise UserError(f"unknown {self.what} {name!r}: {nearest(name, self._table)}")
        return import_object(self._table[name], self.what)
