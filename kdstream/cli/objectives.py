"""``kdstream objectives``: all of them in a table, or one of them in full."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdstream.cli.frame import CommandParser, find_own_modules, run_command
from kdstream.errors import UserError
from kdstream.registry import nearest

if TYPE_CHECKING:
    from kdstream.objectives import Term

EXTRAS = {"phases": "phases", "adapt": "surgery", "peers": "peers"}
"""Hook of a term -> what the table calls it."""
PAGE = """# Objectives

All of them in one table; formulas, sources of the settings, and presets of one: `kdstream objectives NAME`.
Taps are the default ones. *Over the batch*: the samples of a batch are compared with each other; with several processes
those of all of them, unless the recipe says `relations: local`. *Trains* counts the parameters that are trained beside
the student; *step* is the time of a training step over that of a KD loop written by hand, both for
"""


def settings(term: type[Term]) -> dict[str, Any]:
    """A term's keyword arguments with their defaults; ``inspect.Parameter.empty`` where there is none."""
    if "__init__" not in vars(term):
        return {}
    parameters = list(inspect.signature(term).parameters.values())
    return {parameter.name: parameter.default for parameter in parameters}


def signature(term: type[Term]) -> str:
    """The settings in one line, as ``temperature=4.0``."""
    given = settings(term).items()
    return ", ".join(key if value is inspect.Parameter.empty else f"{key}={value!r}" for key, value in given)


def source(term: type[Term]) -> str:
    """Paper and equations: how the docstring's paragraph "Source: ..." begins."""
    _, _, text = (inspect.getdoc(term) or "").partition("Source: ")
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    return re.split(r"[;:] |\. (?=[A-Z])", paragraph, maxsplit=1)[0].rstrip(".")


def title(term: type[Term]) -> tuple[str, str]:
    """The first line of the term's file: what the objective is, and whose."""
    about = (inspect.getdoc(inspect.getmodule(term)) or "").split("\n", 1)[0].rstrip(".")
    what, _, paper = about.partition(" (")
    return what, paper.removesuffix(")")


def extras(term: type[Term]) -> list[str]:
    """What else the objective does, or needs."""
    from kdstream.objectives import Term

    found = [word for hook, word in EXTRAS.items() if getattr(term, hook) is not getattr(Term, hook)]
    if term.over_batch:
        found.append("over the batch")
    if not term.uses_teacher:
        found.append("no teacher")
    if term.phases is not Term.phases and not term().phases():
        found[found.index("phases")] = "phases if asked"
    return found


def taps(term: type[Term]) -> str:
    """The default taps: the student's, and after an arrow the teacher's where they have other names."""
    ours, theirs = (" ".join(dict.fromkeys(names)) for names in (term().student_taps, term().teacher_taps))
    return ours if ours == theirs else f"{ours or 'none'} -> {theirs or 'none'}"


def markdown(costs: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the page.

    Args:
        costs: what ``kdstream bench step --json`` wrote.
    """
    from kdstream.objectives import OBJECTIVES

    asked, machine = costs["settings"], costs["machine"]
    pair = f"{asked['teacher']} and {asked['student']}"
    yield f"{PAGE}{pair} at batch {asked['batch']} on one thread of an {machine['cpu']} (torch {machine['torch']})."
    yield ""
    yield "| name | objective | paper, equation | taps | settings | trains | step |"
    yield "|---|---|---|---|---|---|---|"
    for name in OBJECTIVES:
        term = OBJECTIVES.find(name)
        rows = [row for row in costs["objectives"] if row["objective"] == name]
        steps = [f"{row['median']:.2f}{', phase' if row['work'] != name else ''}" for row in rows]
        what = ", ".join([title(term)[0], *extras(term)])
        trains = f"{rows[0]['trains']:,}" if rows and rows[0]["trains"] else ""
        given = f"`{signature(term)}`" if settings(term) else ""
        cells = [f"`{name}`", what, source(term), taps(term), given, trains, "; ".join(steps)]
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _overview(console: Console) -> None:
    from kdstream.objectives import OBJECTIVES

    table = Table(box=SIMPLE)
    for column in ("name", "objective", "paper"):
        table.add_column(column, no_wrap=column == "name")
    for name in OBJECTIVES:
        term = OBJECTIVES.find(name)
        what, paper = title(term)
        table.add_row(name, ", ".join([what.split(":")[0], *extras(term)]), paper)
    console.print(table)
    console.print("kdstream objectives NAME: formula, source, settings and presets of one", highlight=False)


def show(name: str, console: Console) -> None:
    """Print all that is known of one objective.

    Raises:
        UserError: there is none of that name.
    """
    from kdstream.objectives import OBJECTIVES
    from kdstream.objectives.presets import term_presets

    if name not in OBJECTIVES:
        raise UserError(f"unknown objective {name!r}: {nearest(name, OBJECTIVES)}")
    term = OBJECTIVES.find(name)
    console.print(Text(f"{name}({signature(term)})", style="bold"))
    console.print(Text(inspect.getdoc(term) or ""), soft_wrap=True)
    presets = term_presets(name)
    if presets:
        console.print(Text(f"\nPresets: {', '.join(presets)}"), soft_wrap=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        costs = json.loads(path.read_text())
    except (OSError, ValueError):
        costs = None
    if not isinstance(costs, dict) or costs.get("bench") != "step":
        raise UserError(f"--markdown {path}: not what kdstream bench step --json FILE writes")
    return costs


def _parser() -> CommandParser:
    parser = CommandParser(prog="kdstream objectives", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("name", nargs="*", metavar="NAME", help="default: all, in a table")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="the page of all; FILE: of kdstream bench step --json"
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    console = Console()
    if options.markdown is not None:
        for line in markdown(_read(options.markdown)):
            print(line)
    elif options.name:
        for name in options.name:
            show(name, console)
    else:
        _overview(console)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments)
