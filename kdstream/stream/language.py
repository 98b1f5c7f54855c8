"""Chains as text: ``decode | coded(random(50, 100)) | augment(cifar) | my_pkg.stages:invert(p=0.2)``."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass, field
from typing import Any

from kdstream.errors import UserError
from kdstream.registry import Registry
from kdstream.stream.stage import Chain, Stage, as_stages


def _is_filter(found: Any) -> bool:
    """Whether it is one of webdataset's filters, with or without its arguments."""
    kind = type(found)
    return kind.__module__ == "webdataset.filters" and kind.__name__ in ("RestCurried", "FilterFunction")


STAGES = Registry(
    "stage",
    {
        "decode": "kdstream.stream.decode:decode",
        "augment": "kdstream.stream.augment:augment",
        "coded": "kdstream.stream.coded:coded",
        "randaugment": "kdstream.stream.randaugment:randaugment",
        "erasing": "kdstream.stream.erasing:erasing",
        "mixup": "kdstream.stream.mix:mixup",
        "cutmix": "kdstream.stream.mix:cutmix",
        "mix": "kdstream.stream.mix:mix",
        "teacher": "kdstream.stream.teacher:teacher",
        "normalize": "kdstream.stream.normalize:normalize",
    },
    may_be=lambda found: isinstance(found, Stage | Chain) or _is_filter(found),
)

_DOTTED = re.compile(r"(?<![\w.\"'])([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)")


@dataclass(frozen=True)
class Call:
    """A name with arguments, as text gave it: ``fixed(50)``; its ``str`` is such text again."""

    name: str
    args: tuple[Any, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = [*map(_text, self.args), *(f"{key}={_text(value)}" for key, value in self.settings.items())]
        return f"{self.name}({', '.join(given)})" if given else self.name


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return str(value) if isinstance(value, Call) else repr(value)


def parse_calls(text: str) -> list[Call]:
    """The calls of a chain, without looking any name up.

    Bare words are strings, numbers and quoted strings are themselves, ``true``/``false``/``none`` are read in any case,
    ``[a, b]`` is a list, ``f(x)`` inside of arguments is a :class:`Call`. Nothing is evaluated.

    Raises:
        UserError: text that is no chain.
    """
    try:
        return _calls(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: a zero byte, for one
        if isinstance(error, UserError):
            raise
        said = (error.msg if isinstance(error, SyntaxError) else str(error)) or "too much in one another"
        raise UserError(
            f"stream {_short(text)} is not a chain of stages ({' '.join(said.split())}): write it like "
            "'decode | coded(hkl, delta=5) | augment(cifar)'"
        ) from None


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def _calls(text: str) -> list[Call]:
    paths: list[str] = []
    mark = "path_"
    while mark in text:
        mark += "_"

    def shelter(match: re.Match[str]) -> str:
        paths.append(match.group(0))
        return f"{mark}{len(paths) - 1}_"

    def unshelter(string: str) -> str:
        return re.sub(rf"{mark}(\d+)_", lambda match: paths[int(match.group(1))], string)

    def name_of(node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return unshelter(node.id)
        if isinstance(node, ast.Attribute):
            return f"{name_of(node.value)}.{node.attr}"
        raise UserError(f"stream {_short(text)}: expected a name")

    def plain(constant: Any) -> Any:
        if (
            constant is None
            or isinstance(constant, bool | int)
            or (isinstance(constant, float) and math.isfinite(constant))
        ):
            return constant
        raise UserError(f"stream {_short(text)}: {constant!r} is neither a finite number nor text")

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Call):
            return call(node)
        if isinstance(node, ast.Constant):
            return unshelter(node.value) if isinstance(node.value, str) else plain(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            number = plain(node.operand.value)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number
        if isinstance(node, ast.List | ast.Tuple):
            return [value(item) for item in node.elts]
        name = name_of(node)
        return {"true": True, "false": False, "none": None}.get(name.lower(), name)

    def call(node: ast.expr) -> Call:
        if not isinstance(node, ast.Call):
            return Call(name_of(node))
        if any(keyword.arg is None for keyword in node.keywords):
            raise UserError(f"stream {_short(text)}: ** is not allowed")
        settings = {str(keyword.arg): value(keyword.value) for keyword in node.keywords}
        if len(settings) < len(node.keywords):
            raise UserError(f"stream {_short(text)}: a setting of {name_of(node.func)} stands there twice")
        return Call(name_of(node.func), tuple(value(item) for item in node.args), settings)

    def flatten(node: ast.expr) -> list[Call]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return flatten(node.left) + flatten(node.right)
        return [call(node)]

    return flatten(ast.parse(_DOTTED.sub(shelter, text).strip(), mode="eval").body)


def parse_chain(text: str) -> Chain:
    """The chain that a text describes; short names come from :data:`STAGES`, others are dotted paths with a colon.

    By dotted path it may name a stage or chain of your own, a callable from iterator to iterator, one of webdataset's
    filters, or, with arguments, a function or class of yours that gives such. Their modules are imported and, with
    arguments, they are called: see :mod:`kdstream.registry` for what is not.

    Raises:
        UserError: bad syntax, an unknown name, wrong settings, a name of the standard library or of other tools.
    """
    chain = Chain()
    for wanted in parse_calls(text):
        found = STAGES.find(wanted.name)
        if _is_filter(found) and getattr(found, "__name__", "") in ("_decode", "decode", "_xdecode", "xdecode"):
            raise UserError(f"stage {wanted.name}: it unpickles what a shard may hold: use kdstream's decode")
        configured = bool(wanted.args or wanted.settings)
        if isinstance(found, Stage):
            made: Any = found(*wanted.args, **wanted.settings) if configured else found
        elif configured or wanted.name in STAGES or type(found).__name__ == "RestCurried":
            try:
                made = found(*wanted.args, **wanted.settings)
            except TypeError as error:
                raise UserError(f"stage {wanted.name}: {error}") from None
        else:
            made = found
        chain = chain | Chain(as_stages(made))
    return chain
