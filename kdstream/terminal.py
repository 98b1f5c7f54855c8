"""Text from data on its way to a person: nothing in it can steer a terminal, break a line or change its order."""

from __future__ import annotations

import contextlib
import sys
import unicodedata

# Marks, embeddings, overrides and isolates of the bidirectional algorithm: invisible, they show text in another order.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: object, keep: str = "") -> str:
    """``text`` in one line, with what would act on a terminal instead of being read made readable.

    White space of all kinds becomes a space. Other control characters (escape sequences begin with one), halves of
    surrogate pairs (names of files that are not UTF-8) and marks that turn the direction of writing appear as Python
    writes them: ``\\x1b``.

    Args:
        text: of anybody: class names, keys, paths, messages.
        keep: characters that may stay: ``"\\n"`` for text of several lines.
    """
    return "".join(char if char in keep else _readable(char) for char in str(text))


def quoted(text: str, most: int = 200) -> str:
    """A name or text of somebody's within a message: as Python writes it, in quotes that show where it begins and ends,
    hence on one line; at most about ``most`` characters, without the middle where it is longer."""
    return _cut(repr(text), most)


def shown(value: object, most: int = 80) -> str:
    """What a file holds, within a message: a text that can be printed as it stands, all else as Python writes it in
    ASCII; at most about ``most`` characters, without the middle where it is longer."""
    return _cut(value if isinstance(value, str) and value.isprintable() else ascii(value), most)


def _cut(text: str, most: int) -> str:
    end = most // 3
    return text if len(text) <= most else f"{text[: most - end - 3]}...{text[-end:]}"


def _readable(char: str) -> str:
    if char.isspace():
        return " "
    hidden = unicodedata.category(char) in ("Cc", "Cs") or char in _TURNING
    return char.encode("unicode_escape").decode("ascii") if hidden else char


def say_error(line: object) -> None:
    """One line to standard error; nothing where that is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(visible(line), file=sys.stderr, flush=True)
