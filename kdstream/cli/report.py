"""``kdstream report``: a paper's table with ours beside it: terminal, HTML, Markdown and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from kdstream.cli.frame import CommandParser, MixedParser, command_parser, find_own_modules, run_command
from kdstream.cli.table import add_table_options

EXAMPLES = """examples:
  kdstream report ckd/table5
  kdstream report ckd/table5 --add /shared/their/runs --out table5.html
  kdstream report ckd/table5 data.path=shards/cifar10 epochs=20
  kdstream report cmkd/table5 --corrupted shards/cifar100c
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments, "what was measured is kept; the same command continues")


def _parser() -> CommandParser:
    parser = command_parser("report", __doc__, EXAMPLES, MixedParser)
    add_table_options(parser)
    parser.add_argument("--add", action="append", default=[], type=Path, metavar="FOLDER", help="other people's runs")
    parser.add_argument("--quick", action="store_true", help="look at no network: tell what logs and earlier looks say")
    parser.add_argument(
        "--corrupted",
        type=Path,
        metavar="SHARDS",
        help="corrupted images, of kdstream shards cifar100c (default: those beside the data, as shards/cifar100c; or "
        "else made of the data)",
    )
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the HTML file; .md and .json beside it (default: in runs/reports)"
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    import json
    import shlex
    from dataclasses import replace

    from rich.console import Console

    from kdstream.addresses import public
    from kdstream.atomic import write_atomic, writing
    from kdstream.bars import bar_of, progress_bars
    from kdstream.display.table_page import grids, to_html, to_markdown
    from kdstream.training.tables.cells import expand
    from kdstream.training.tables.comparison import as_json, compare, page
    from kdstream.training.tables.finished import Finished
    from kdstream.training.tables.passes import Passes
    from kdstream.training.tables.pictures import pictures
    from kdstream.training.tables.table import load_table

    console = Console(highlight=False)
    table = load_table(options.table)
    cells = expand(table, options.overrides)
    finished = Finished(options.add)
    with progress_bars(Console(stderr=True)) as progress:
        passes = Passes(finished, bar_of(progress), options.cpu, not options.quick, options.corrupted)
        seeds = options.seeds or table.runs_averaged or 1
        compared = compare(cells, seeds, options.overrides, finished, passes)
        charts = pictures(table, compared, passes)
    overrides = [public(override) for override in options.overrides]
    command = shlex.join(["kdstream", "table", options.table, *overrides])
    shown = page(table, compared, command, overrides)
    shown = replace(shown, charts=charts, notes=[*passes.remarks, *shown.notes])
    out = options.out or Path("runs/reports") / f"{table.name.replace('/', '-')}.html"
    texts = {
        ".html": to_html(shown),
        ".md": to_markdown(shown),
        ".json": json.dumps({"command": command, "remarks": passes.remarks, **as_json(table, compared)}, indent=2)
        + "\n",
    }
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            write_atomic(out.with_suffix(ending), text.encode("utf-8", "replace"))
    console.print(shown.title, style="bold", markup=False, soft_wrap=True)
    console.print(shown.place, markup=False, soft_wrap=True)
    width = console.width if console.is_terminal else 10_000
    printer = console if console.is_terminal else Console(highlight=False, width=width, file=console.file)
    for grid in grids(shown, width):
        printer.print(grid)
    for name, value in shown.facts:
        console.print(f"{name}: {value}", style="dim", markup=False, soft_wrap=True)
    for note in shown.notes:
        console.print(f"- {note}", markup=False, soft_wrap=True)
    console.print(f"written: {out.with_suffix('.html')}, .md, .json", markup=False, soft_wrap=True)
