"""``kdstream claims``: do the papers' claims hold? Trains what decides them, seed by seed, and writes one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdstream.cli.frame import CommandParser, MixedParser, command_parser, find_own_modules, run_command
from kdstream.cli.table import estimate, positive, say, train_all

if TYPE_CHECKING:
    from rich.console import Console

    from kdstream.training.tables.cells import Cell
    from kdstream.training.tables.claims import Claim
    from kdstream.training.tables.finished import Done, Finished
    from kdstream.training.tables.table import Table

EXAMPLES = """examples:
  kdstream claims --dry-run
  kdstream claims ckd ttm --seeds 5
  kdstream claims --jobs 4 data.path=shards/cifar10
  kdstream claims my_claim.yaml --page
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments, "what is trained is saved; the same command continues")


def _parser() -> CommandParser:
    parser = command_parser("claims", __doc__, EXAMPLES, MixedParser)
    parser.add_argument(
        "what",
        nargs="*",
        metavar="NAME|key=value",
        help="claims, as ckd, or files of your own (default: all of kdstream's); settings for all trainings",
    )
    parser.add_argument("--seeds", type=positive, default=5, metavar="N", help="of each training (default: 5)")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="trainings at a time (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="list the claims, and what is left to do")
    parser.add_argument("--page", action="store_true", help="train nothing: the page of what is finished")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/claims.html"),
        metavar="FILE",
        help="the HTML file; .md and .json beside it (default: runs/claims.html)",
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    from rich.console import Console

    from kdstream.training.tables.claims import cells_of, in_rounds, load_claim
    from kdstream.training.tables.finished import Finished
    from kdstream.training.tables.table import known_claims
    from kdstream.training.tables.work import left_to_do

    console = Console(highlight=False)
    names = [one for one in options.what if "=" not in one]
    overrides = [one for one in options.what if "=" in one]
    tables = [load_claim(name) for name in names or known_claims()]
    cells = cells_of(tables, overrides)
    together = [cell for own in cells.values() for cell in own]
    tasks = in_rounds(left_to_do(together, options.seeds, overrides, Finished()))
    teachers = sum(task.gives is not None for task in tasks)
    say(
        console,
        f"{_counted(len(tables))}, {options.seeds} seed{'s' if options.seeds > 1 else ''} each: {len(tasks)} trainings "
        f"left, {teachers} of them teachers', {sum(task.epochs for task in tasks):,} epochs",
    )
    if options.dry_run:
        for table in tables:
            say(console, f"  {_short(table)}: {table.title} ({table.paper}, {table.place})")
        if tasks:
            estimate(console, tasks, options.cpu)
        return
    try:
        if tasks and not options.page:
            train_all(console, tasks, options.jobs, ["--cpu"] if options.cpu else [])
    finally:  # what is there counts, whatever became of the rest
        _report(console, tables, cells, overrides, options)


def _report(
    console: Console,
    tables: Sequence[Table],
    cells: dict[str, Any],
    overrides: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Judge, write the page, and show it."""
    import json

    from rich.console import Console

    from kdstream.atomic import write_atomic, writing
    from kdstream.bars import bar_of, progress_bars
    from kdstream.display.claims_page import grid, to_html, to_markdown
    from kdstream.training.tables.claims import as_json, by_verdict, judge
    from kdstream.training.tables.finished import Finished
    from kdstream.training.tables.passes import Passes

    finished = Finished()
    with progress_bars(Console(stderr=True)) as progress:
        passes = Passes(finished, bar_of(progress), options.cpu)
        judged = [judge(table, cells[table.name], options.seeds, finished, passes) for table in tables]
    claims = by_verdict(judged)
    facts = _facts(claims, finished, overrides, options.seeds)
    page = _page(claims, facts)
    out = options.out
    texts = {
        ".html": to_html(page),
        ".md": to_markdown(page),
        ".json": json.dumps({"about": dict(facts), "claims": [as_json(claim) for claim in claims]}, indent=1) + "\n",
    }
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            write_atomic(out.with_suffix(ending), text.encode("utf-8", "replace"))
    say(console, f"{_counted(len(claims))}: {page.summary}")
    wide = console if console.is_terminal else Console(width=10_000, file=console.file)  # a file has no width
    wide.print(grid(page))
    say(console, f"written: {out.with_suffix('.html')}, .md, .json")


def _counted(claims: int) -> str:
    return f"{claims} claim{'' if claims == 1 else 's'}"


def _short(table: Table) -> str:
    return table.called.removeprefix("claims/")


def _page(claims: Sequence[Claim], facts: list[tuple[str, str]]) -> Any:
    from kdstream.display.claims_page import ClaimsPage, ShownClaim

    shown = [
        ShownClaim(
            _short(claim.table),
            claim.table.title,
            f"{claim.table.paper}, {claim.table.place}",
            claim.verdict,
            _lines(claim),
            claim.table.notes,
        )
        for claim in claims
    ]
    return ClaimsPage(shown, facts)


def _lines(claim: Claim) -> list[Any]:
    from kdstream.analysis.spread import Spread
    from kdstream.display.claims_page import ShownLine
    from kdstream.training.tables.claims import MEASURED

    table, found = claim.table, []
    for line in claim.lines:
        digits = 2 if line.unit == "points" else 3
        words = [table.rows[word].label if word in table.rows else word for word in line.order.text.split()]
        difference, interval, ours = line.difference, None, ""
        if difference is not None:
            ours = f"{difference.mean:+.{digits}f}"
            if difference.low is not None and difference.high is not None:
                ours += f" ({difference.low:+.{digits}f} to {difference.high:+.{digits}f})"
                interval = (difference.low, difference.mean, difference.high)
        values = {
            table.rows[row].label: f"{', '.join(f'{value:.{digits}f}' for value in own.values())} "
            f"(mean {Spread.of(list(own.values())).mean:.{digits}f}; seeds {', '.join(map(str, own))})"
            for row, own in line.values.items()
            if own
        }
        found.append(
            ShownLine(
                order=" ".join(words),
                setting=table.columns[line.column].label if len(table.columns) > 1 else "",
                measure=" ".join(filter(None, [MEASURED[line.measure][0] + ("," if line.unit else ""), line.unit])),
                printed=line.order.printed,
                ours=ours,
                seeds=0 if difference is None else difference.pairs,
                verdict=line.verdict,
                lacking=", ".join(filter(None, [f"{line.lacking} trainings left" * bool(line.lacking), line.why_not])),
                interval=interval,
                values=values,
            )
        )
    return found


def _facts(claims: Sequence[Claim], finished: Finished, overrides: Sequence[str], seeds: int) -> list[tuple[str, str]]:
    """How to read the page, and where its numbers are from."""
    import os
    import platform
    import shlex

    import torch

    from kdstream.addresses import public
    from kdstream.benches.measure import cpu_name
    from kdstream.training.tables.claims import RULE
    from kdstream.training.tables.provenance import version

    cells = [cell for claim in claims for cell in claim.cells]
    done = {one.folder: one for cell in cells for one in finished.of(cell).values()}
    teachers = {one.folder: one for cell in cells if (t := cell.teaching()) and (one := finished.teacher(t))}
    given = {one.last["top1"] for cell in cells if (one := _given(cell, finished)) is not None}
    hours = sum(one.seconds for one in (*done.values(), *teachers.values())) / 3600
    taught = sorted({f"{one.last['top1']:.2f} %" for one in teachers.values()})
    taught += [f"{top1:.2f} % (given by its weights)" for top1 in sorted(given)]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    bases = sorted({name for claim in claims for name in claim.table.base})
    facts = [
        ("verdict", RULE),
        ("setting", f"{', '.join(bases)} (a paper's own settings take days)"),
        ("seeds", f"{seeds} each; {len(done)} students and {len(teachers)} teachers are trained, {hours:.1f} hours"),
        ("command", shlex.join(["kdstream", "claims", "--seeds", str(seeds), *map(public, overrides)])),
        ("machine", f"{cpu_name()}, {os.cpu_count()} cores{gpu}, {platform.system()}"),
        ("versions", f"{version()}, torch {torch.__version__}, Python {platform.python_version()}"),
    ]
    if taught:
        facts.insert(2, ("teachers", f"top-1 {', '.join(taught)}"))
    return facts


def _given(cell: Cell, finished: Finished) -> Done | None:
    """What was measured of a teacher that was given, when it first taught."""
    if cell.recipe is None or cell.recipe.teacher is None or cell.teaching() is not None:
        return None
    return next(filter(None, (finished.given(cell.with_seed(seed)) for seed in finished.of(cell))), None)
