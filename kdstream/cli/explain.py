"""``kdstream explain``: what a stage, an objective, a selector or a recipe's setting is, by its name."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from kdstream.cli.frame import CommandParser, command_parser, find_own_modules, run_command
from kdstream.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """examples:
  kdstream explain coded
  kdstream explain kd
  kdstream explain optimizer.no_decay
  kdstream explain milestones
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments)


def _parser() -> CommandParser:
    parser = command_parser("explain", __doc__, EXAMPLES)
    parser.add_argument("name", nargs="+", metavar="NAME", help="as a recipe has it: kd, coded, optimizer.lr, ...")
    return parser


def _run(options: argparse.Namespace) -> None:
    from rich.console import Console

    console = Console()
    for name in options.name:
        _explain(name, console)


def _explain(name: str, console: Console) -> None:
    from kdstream.cli.objectives import show
    from kdstream.objectives import OBJECTIVES
    from kdstream.registry import nearest
    from kdstream.stream.coded import SELECTORS
    from kdstream.stream.language import STAGES

    settings = dict(_settings())
    _, _, inner = name.partition("loss.")
    term = inner.partition(".")[0] or name
    found = False
    for one, kind in (
        (STAGES.find(name) if name in STAGES else None, "a stage of the stream"),
        (SELECTORS.get(name), "a selector of coded"),
    ):
        if one is not None:
            _say(console, f"{name}: {kind}", _call(name, one), inspect.getdoc(one) or "")
            found = True
    if term in OBJECTIVES:
        show(term, console)
        found = True
    for place, (kind, default, text) in settings.items():
        if name in (place, place.rpartition(".")[2]):
            _say(console, f"{place}: a setting of recipes", f"{kind}; default: {default}", text)
            found = True
    if not found:
        names = {*STAGES, *SELECTORS, *OBJECTIVES, *settings, *(place.rpartition(".")[2] for place in settings)}
        near = nearest(name, names)
        near = (
            near if near.startswith("did you mean") else "kdstream objectives and kdstream recipes list what there is"
        )
        raise UserError(f"nothing in a recipe is called {name!r}: {near}")


def _say(console: Console, title: str, *paragraphs: str) -> None:
    from rich.text import Text

    console.print(Text(title, style="bold"))
    for paragraph in paragraphs:
        console.print(Text(paragraph), soft_wrap=True)
    console.print()


def _call(name: str, found: Any) -> str:
    """How it is called, with its settings' defaults; what the stream fills in is not the user's to set."""
    from kdstream.stream.stage import Given, Stage

    function = found.function if isinstance(found, Stage) else found
    first = 1 if isinstance(found, Stage) else 0  # the iterator
    given = [
        one.name if one.default is one.empty else f"{one.name}={one.default!r}"
        for one in list(inspect.signature(function).parameters.values())[first:]
        if not isinstance(one.default, Given) and one.kind is not one.VAR_KEYWORD
    ]
    return f"{name}({', '.join(given)})"


def _settings() -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Every setting of a recipe by its dotted name: what it may be, its default, and what is said of it."""
    from kdstream.recipe import Recipe
    from kdstream.training.recipe_schema import described, inner_groups

    def walk(group: Any, above: str) -> Iterator[tuple[str, tuple[str, str, str]]]:
        texts = described(group)
        for name, field in group.model_fields.items():
            inner = inner_groups(field.annotation)
            default = "none" if field.is_required() else _short(field.get_default(call_default_factory=True))
            kind = "a group: " + ", ".join(inner[0].model_fields) if inner else _kind(field.annotation)
            yield above + name, (kind, "its settings'" if inner and default != "None" else default, texts.get(name, ""))
            for one in inner[:1]:
                yield from walk(one, f"{above}{name}.")

    yield from walk(Recipe, "")


def _kind(annotation: Any) -> str:
    """A setting's type in a recipe's words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(map(_kind, inner)))
    if origin is list:
        return f"a list of {_kind(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_kind, inner))}]"
    words = {str: "text", int: "whole number", float: "number", bool: "true | false", type(None): "null", Any: "any"}
    return "a group" if origin is dict else words.get(annotation, str(annotation))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
