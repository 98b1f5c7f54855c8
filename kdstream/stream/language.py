"""Chains as text: ``decode | augment(cifar) | my_pkg.stages:invert(p=0.2) | coded(random(50, 100))``."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any

from kdstream.errors import UserError
from kdstream.registry import Registry
from kdstream.stream.stage import Chain, Stage, as_stages

STAGES = Registry(
    "stage",
    {
        "decode": "kdstream.stream.decode:decode",
        "augment": "kdstream.stream.augment:augment",
        "coded": "kdstream.stream.coded:coded",
        "teacher": "kdstream.stream.teacher:teacher",
        "normalize": "kdstream.stream.normalize:normalize",
    },
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
    paths: list[str] = []

    def shelter(match: re.Match[str]) -> str:
        paths.append(match.group(0))
        return f"path_{len(paths) - 1}_"

    def unshelter(string: str) -> str:
        return re.sub(r"path_(\d+)_", lambda match: paths[int(match.group(1))], string)

    def name_of(node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return unshelter(node.id)
        if isinstance(node, ast.Attribute):
            return f"{name_of(node.value)}.{node.attr}"
        raise UserError(f"stream {text!r}: expected a name")

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Call):
            return call(node)
        if isinstance(node, ast.Constant):
            return unshelter(node.value) if isinstance(node.value, str) else node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return -node.operand.value
        if isinstance(node, ast.List | ast.Tuple):
            return [value(item) for item in node.elts]
        name = name_of(node)
        return {"true": True, "false": False, "none": None}.get(name.lower(), name)

    def call(node: ast.expr) -> Call:
        if not isinstance(node, ast.Call):
            return Call(name_of(node))
        if any(keyword.arg is None for keyword in node.keywords):
            raise UserError(f"stream {text!r}: ** is not allowed")
        settings = {str(keyword.arg): value(keyword.value) for keyword in node.keywords}
        return Call(name_of(node.func), tuple(value(item) for item in node.args), settings)

    def flatten(node: ast.expr) -> list[Call]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return flatten(node.left) + flatten(node.right)
        return [call(node)]

    try:
        tree = ast.parse(_DOTTED.sub(shelter, text).strip(), mode="eval")
    except SyntaxError as error:
        raise UserError(
            f"stream {text!r} is not a chain of stages ({error.msg}): write it like "
            "'decode | augment(cifar) | coded(hkl, delta=10)'"
        ) from None
    return flatten(tree.body)


def parse_chain(text: str) -> Chain:
    """The chain that a text describes; short names come from :data:`STAGES`, others are dotted paths with a colon.

    Raises:
        UserError: bad syntax, an unknown name, wrong settings.
    """
    chain = Chain()
    for wanted in parse_calls(text):
        found = STAGES.find(wanted.name)
        configured = bool(wanted.args or wanted.settings)
        if isinstance(found, Stage):
            made: Any = found(*wanted.args, **wanted.settings) if configured else found
        elif configured or wanted.name in STAGES:
            try:
                made = found(*wanted.args, **wanted.settings)
            except TypeError as error:
                raise UserError(f"stage {wanted.name}: {error}") from None
        else:
            made = found
        chain = chain | Chain(as_stages(made))
    return chain
