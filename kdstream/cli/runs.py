"""``kdstream runs``: the trainings in a folder: finished or not, accuracy, when, and how to go on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from kdstream.cli.frame import CommandParser, command_parser, run_command

EXAMPLES = """examples:
  kdstream runs
  kdstream runs /scratch/me/runs
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(_parser, _run, arguments)


def _parser() -> CommandParser:
    parser = command_parser("runs", __doc__, EXAMPLES)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help="default: runs")
    return parser


def _run(options: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kdstream.terminal import visible
    from kdstream.training.run_list import find_runs

    runs = find_runs(options.folder.expanduser())
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    grid.add_column("run", overflow="fold")
    for name in ("state", "top-1 %", "when"):
        grid.add_column(name, no_wrap=True, justify="right" if "%" in name else "left")
    for run in runs:
        top1 = "–" if run.top1 is None else f"{run.top1:.2f}"
        grid.add_row(Text(visible(run.name)), run.state, top1, f"{run.when:%Y-%m-%d %H:%M}")
    console = Console(highlight=False)
    if not runs:
        console.print(f"{options.folder} holds no runs", markup=False, soft_wrap=True)
        return
    wide = console if console.is_terminal else Console(width=10_000, file=console.file)  # a file has no width
    wide.print(grid)
    for command in dict.fromkeys(run.command for run in runs if run.command is not None):
        console.print(f"to continue: {command}", markup=False, soft_wrap=True)
