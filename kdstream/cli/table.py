"""``kdstream table``: train what is missing of a paper's table, each cell once, whichever table asked for it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdstream.cli.frame import CommandParser, MixedParser, command_parser, find_own_modules, run_command
from kdstream.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from kdstream.training.tables.work import Pair, Task

EXAMPLES = """examples:
  kdstream table ckd/table5 --dry-run
  kdstream table ckd/table5 --cell wrn_40_2-wrn_16_2:ccc --seeds 3
  kdstream table ckd/table5 --methods kd,ckd --jobs 4 data.path=shards/cifar10 epochs=20
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments, "what is trained is saved; the same command continues")


def _parser() -> CommandParser:
    parser = command_parser("table", __doc__, EXAMPLES, MixedParser)
    add_table_options(parser)
    parser.add_argument("--cell", metavar="COL:ROW", help="this cell alone")
    parser.add_argument("--methods", metavar="A,B", help="these rows alone")
    parser.add_argument("--pairs", metavar="A,B", help="these columns alone")
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do and how long it takes")
    parser.add_argument(
        "--jobs",
        type=_jobs,
        default=1,
        metavar="N|ray",
        help="trainings at a time (default 1); ray: over the Ray cluster that RAY_ADDRESS names, else on this machine",
    )
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser


def add_table_options(parser: CommandParser) -> None:
    """What the verbs about one table share."""
    parser.add_argument("table", help="name of one of kdstream's, as ckd/table5, or a file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for all cells")
    parser.add_argument("--seeds", type=positive, metavar="N", help="of each cell (default: as many as the paper says)")


def _jobs(text: str) -> int | str:
    return text if text == "ray" else positive(text)


def positive(text: str) -> int:
    """A whole number above 0, of a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _run(options: argparse.Namespace) -> None:
    from rich.console import Console

    from kdstream.training.tables.cells import choose, expand
    from kdstream.training.tables.finished import Finished
    from kdstream.training.tables.table import load_table
    from kdstream.training.tables.work import left_to_do, need_some

    console = Console(highlight=False)
    table = load_table(options.table)
    cells = choose(expand(table, options.overrides), options.cell, options.methods, options.pairs)
    need_some(cells, table.name)
    seeds = options.seeds or table.runs_averaged or 1
    tasks = left_to_do(cells, seeds, options.overrides, Finished())
    say(console, f"{table.name}: {table.title}")
    say(console, _summary(sum(cell.recipe is not None for cell in cells), seeds, tasks))
    if options.dry_run and tasks:
        estimate(console, tasks, options.cpu)
    elif tasks:
        train_all(console, tasks, options.jobs, ["--cpu"] if options.cpu else [])
    if not options.dry_run:
        say(console, f"kdstream report {options.table} shows the table")


def say(console: Console, line: str) -> None:
    """A line as it is, however wide the terminal."""
    console.print(line, markup=False, soft_wrap=True)


def _summary(cells: int, seeds: int, tasks: Sequence[Task]) -> str:
    if not tasks:
        return f"{cells} cells, {seeds} seed{'s' if seeds > 1 else ''} each: all done"
    teachers = sum(task.gives is not None for task in tasks)
    epochs = sum(task.epochs for task in tasks)
    return (
        f"{cells} cells, {seeds} seed{'s' if seeds > 1 else ''} each: {len(tasks)} trainings left, {teachers} of them "
        f"teachers', {epochs:,} epochs"
    )


def estimate(console: Console, tasks: Sequence[Task], cpu: bool) -> None:
    """Say how long the trainings take, from some steps of each pair of networks whose data is there."""
    from rich.progress import track

    from kdstream.training.accelerator import make_accelerator
    from kdstream.training.tables.timing import STEPS, data_is_there, seconds_per_epoch
    from kdstream.training.tables.work import hours

    first: dict[Pair, Task] = {}
    for task in tasks:
        if task.epochs and data_is_there(task.recipe):
            first.setdefault(task.pair, task)
    speeds: dict[Pair, float] = {}
    accelerator = make_accelerator(cpu, tasks[0].recipe.precision) if first else None
    errors = console.__class__(stderr=True)
    timed = track(first.items(), "Timing", console=errors, transient=True, disable=not errors.is_terminal)
    for pair, task in timed:
        assert accelerator is not None
        try:
            speeds[pair] = seconds_per_epoch(task.recipe, accelerator)
        except UserError as error:
            say(console, f"{task.name}: not timed: {error}")
            continue
        _, teacher, student, coded = pair
        networks = f"{teacher} -> {student}{', coded' if coded else ''}" if teacher else student
        say(console, f"  {networks}: {speeds[pair]:.1f} s an epoch")
    known, epochs = hours(tasks, speeds)
    if speeds:
        device = accelerator.device.type if accelerator is not None else ""
        say(console, f"about {known:.2f} hours one after the other on this {device}, by {STEPS} steps of each pair")
    if epochs:
        say(console, f"{epochs:,} epochs without an estimate: their data is not here")


def train_all(
    console: Console, tasks: Sequence[Task], jobs: int | str, options: Sequence[str], logs: Path | None = None
) -> None:
    """Run them, and say which failed.

    Args:
        console: where bars are drawn.
        tasks: what to do.
        jobs: so many at a time; "ray": over a Ray cluster.
        options: for every ``kdstream train``.
        logs: see :func:`kdstream.training.tables.work.run_tasks`.

    Raises:
        UserError: some did.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from kdstream.training.tables.on_ray import run_on_ray
    from kdstream.training.tables.work import run_tasks

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=jobs == 1 or not console.is_terminal,  # one at a time shows its own bars
    )

    def tell(line: str) -> None:
        say(console, line)
        console.file.flush()

    with bar:
        whole = bar.add_task("trainings", total=len(tasks))
        if isinstance(jobs, str):
            failed = run_on_ray(tasks, tell, lambda task, well: bar.advance(whole), options, logs=logs)
        else:
            failed = run_tasks(tasks, jobs, tell, lambda task, well: bar.advance(whole), options, logs=logs)
    if failed:
        task, said = failed[0]
        rest = f": {said}" if said else ", see above"
        raise UserError(f"{len(failed)} of {len(tasks)} trainings failed, first {task.name}{rest}")
