"""``kdstream tables``: the papers' tables and figures: how many cells and printed values, and what is done."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kdstream.cli.frame import CommandParser, find_own_modules, run_command
from kdstream.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="kdstream tables",
        description=(__doc__ or "").partition(": ")[2],
        epilog="kdstream table NAME trains what is missing of one; kdstream report NAME shows what came out.",
    )
    parser.add_argument("names", nargs="*", metavar="TABLE", help="names or files; none: all of kdstream's")
    return parser


def _run(options: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table as Grid
    from rich.text import Text

    from kdstream.terminal import visible
    from kdstream.training.tables.cells import expand
    from kdstream.training.tables.finished import Finished
    from kdstream.training.tables.table import known_tables, load_table

    console, errors = Console(), Console(stderr=True)
    names = options.names or known_tables()
    finished = Finished()
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    grid.add_column("table", no_wrap=True)
    grid.add_column("what")
    for column in ("printed", "cells", "done"):
        grid.add_column(column, justify="right", no_wrap=True)
    printed, again, broken = 0, 0, []
    for name in track(names, "Reading", console=errors, transient=True, disable=not errors.is_terminal):
        try:
            table = load_table(name)
            trained = [cell for cell in expand(table) if cell.recipe is not None]
        except UserError as error:
            if options.names:
                raise
            broken.append(str(error))
            continue
        done = sum(bool(finished.of(cell)) for cell in trained)
        repeated = len(table.repeated)
        own = len(table.values) - repeated
        printed, again = printed + own, again + repeated
        shown = f"({repeated:,})" if repeated else f"{own:,}"
        if own and repeated:
            shown = f"{own:,} {shown}"
        counts = (shown, f"{len(trained):,}", f"{done:,}")
        grid.add_row(Text(visible(name)), Text(visible(table.title)), *counts)
    wide = console if console.is_terminal else Console(width=10_000, file=console.file)  # a file has no width
    wide.print(grid)
    repeats = f"; in brackets: {again:,} more that repeat another table's, with their spread" if again else ""
    console.print(
        f"{len(names) - len(broken)} tables and figures, {printed:,} printed values. cells: what can be trained here; "
        f"done: with a seed at least{repeats}",
        highlight=False,
        soft_wrap=True,
    )
    for line in broken[1:]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if broken:
        raise UserError(f"{len(broken)} of {len(names)} cannot be read, one: {broken[0]}")
