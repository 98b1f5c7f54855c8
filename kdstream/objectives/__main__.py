"""Command line: the objectives in a table, or one of them in full."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, Term
from kdstream.registry import nearest

EXTRAS = {"phases": "phases", "adapt": "surgery", "peers": "peers"}
"""Hook of a term -> what the table calls it."""


def settings(term: type[Term]) -> dict[str, Any]:
    """A term's keyword arguments with their defaults; ``inspect.Parameter.empty`` where there is none."""
    if "__init__" not in vars(term):
        return {}
    parameters = list(inspect.signature(term).parameters.values())
    return {parameter.name: parameter.default for parameter in parameters}


def source(term: type[Term]) -> str:
    """Where the formula is from: the docstring's paragraph "Source: ...", in one line."""
    _, _, text = (inspect.getdoc(term) or "").partition("Source: ")
    return " ".join(text.split("\n\n", 1)[0].split())


def title(term: type[Term]) -> str:
    """What the objective is and whose: the first line of its file."""
    return (inspect.getdoc(inspect.getmodule(term)) or "").split("\n", 1)[0].rstrip(".")


def row(name: str) -> dict[str, str]:
    """One objective in the table."""
    term = OBJECTIVES.find(name)
    shown = term() if all(value is not inspect.Parameter.empty for value in settings(term).values()) else term
    extras = [word for hook, word in EXTRAS.items() if getattr(term, hook) is not getattr(Term, hook)]
    if "phases" in extras and not (isinstance(shown, Term) and shown.phases()):
        extras[extras.index("phases")] = "phases if asked"
    taps = list(dict.fromkeys([*shown.student_taps, *shown.teacher_taps]))
    return {"name": name, "objective": title(term), "taps": " ".join(taps), "beside": ", ".join(extras)}


def _overview(console: Console) -> None:
    table = Table(box=SIMPLE)
    for column, settings in (("name", {"no_wrap": True}), ("objective", {}), ("taps", {}), ("has", {})):
        table.add_column(column, **settings)  # type: ignore[arg-type]
    for name in OBJECTIVES:
        table.add_row(*row(name).values())
    console.print(table)
    console.print("python -m kdstream.objectives NAME: formula, source and settings of one", highlight=False)


def _one(name: str, console: Console) -> None:
    if name not in OBJECTIVES:
        raise UserError(f"unknown objective {name!r}: {nearest(name, OBJECTIVES)}")
    term = OBJECTIVES.find(name)
    given = ", ".join(
        key if value is inspect.Parameter.empty else f"{key}={value!r}" for key, value in settings(term).items()
    )
    console.print(Text(f"{name}({given})", style="bold"))
    console.print(Text(inspect.getdoc(term) or ""))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 for bad input."""
    console = Console()
    try:
        parser = _Parser(prog="python -m kdstream.objectives", description=(__doc__ or "").splitlines()[0])
        parser.add_argument("name", nargs="*", metavar="NAME", help="default: all, in a table")
        names = parser.parse_args(arguments).name
        for name in names:
            _one(name, console)
        if not names:
            _overview(console)
    except UserError as error:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"objectives: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
