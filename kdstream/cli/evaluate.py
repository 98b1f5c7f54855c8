"""``kdstream evaluate``: how often a network is right, how well it knows that, and which classes it takes for which."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdstream.addresses import is_published, public
from kdstream.cli.frame import CommandParser, command_parser, find_own_modules, run_command
from kdstream.cli.measuring import add_options, end, measuring, prepare, say, show, write
from kdstream.terminal import visible

if TYPE_CHECKING:
    from kdstream.analysis import accuracy as accurate

EXAMPLES = """examples:
  kdstream evaluate runs/quickstart/coded_kd shards/digits
  kdstream evaluate ckpt_epoch_240.pth shards/cifar100 --split test --model resnet56
  kdstream evaluate published:resnet56@cifar100 shards/cifar100 --split test
"""


def _parser() -> CommandParser:
    parser = command_parser("evaluate", __doc__, EXAMPLES)
    add_options(parser, "WEIGHTS", "val", "evaluate")
    return parser


def _run(options: argparse.Namespace) -> None:
    """Measure, write evaluate.json, confusion.png and reliability.png, print the tables."""
    from kdstream.analysis import accuracy as accurate
    from kdstream.models.published import difference, find

    console = Console()
    job = prepare(options, "evaluate")
    with measuring(console, "evaluate", job) as advance:
        result = accurate.accuracy(job.network, job.data, job.mean, job.std, advance=advance, **job.place)
    title = f"{job.name} on {result.samples:,} images of {job.data.name}/{job.data.split}"
    known = find(options.weights) if is_published(options.weights) else None
    as_published = {} if known is None else {"published_top1": known.top1}
    about = {"weights": public(options.weights), **job.about, **as_published}
    write(job.out / "evaluate.json", {**about, **result.as_dict()})
    write(job.out / "confusion.png", accurate.confusion_figure(result, f"{title}: top-1 {result.top1:.2f} %"))
    write(job.out / "reliability.png", accurate.reliability_figure(result, title))
    show(console, title, accuracy_table(result, None if known is None else known.top1))
    if known is not None and (told := difference(known, result.top1, job.data.split, job.data.num_classes)):
        say(console, f"note: {told}")
    show(console, *classes_table(result))
    if result.mistakes(1):
        show(console, "most frequent mistakes", mistakes_table(result))
    say(console, f"calibration error: expected, over {accurate.BINS} bins of confidence (Guo et al. 2017)")
    end(console, job, result.samples, "evaluate.json, confusion.png, reliability.png")


def accuracy_table(result: accurate.Accuracy, published: float | None = None) -> Table:
    """What holds for the whole split, and the top-1 as published (percent), if it was."""
    table = Table(box=SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_row("top-1, %", f"{result.top1:.2f}")
    if published is not None:
        table.add_row("top-1 as published, %", f"{published:.2f}")
    if len(result.classes) > 5:  # of five, all are among the first five
        table.add_row("top-5, %", f"{result.top5:.2f}")
    table.add_row("loss, nats", f"{result.loss:.4f}")
    table.add_row("calibration error, %", f"{result.calibration_error:.2f}")
    return table


def classes_table(result: accurate.Accuracy, most: int = 20, shown: int = 10) -> tuple[str, Table]:
    """Heading and table of the accuracy by class; only the least accurate ones where there are many."""
    rows = list(zip(result.classes, result.confusion.sum(1).tolist(), result.per_class, strict=True))
    heading = "by class"
    if len(rows) > most:
        rows = sorted((row for row in rows if row[2] is not None), key=lambda row: row[2] or 0.0)[:shown]
        heading = f"the {len(rows)} least accurate of {len(result.classes)} classes"
    table = Table(box=SIMPLE)
    table.add_column("class", overflow="ellipsis", no_wrap=True)
    for column in ("images", "top-1, %"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, count, top1 in rows:
        table.add_row(Text(visible(name)), f"{count:,}", "-" if top1 is None else f"{top1:.2f}")
    return heading, table


def mistakes_table(result: accurate.Accuracy) -> Table:
    """The classes that are most often taken for others."""
    table = Table(box=SIMPLE)
    for column in ("right class", "answer"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for column in ("images", "% of the class"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, answer, count in result.mistakes(5):
        share = 100 * count / result.confusion[label].sum()
        right, answered = (Text(visible(result.classes[number])) for number in (label, answer))
        table.add_row(right, answered, f"{count:,}", f"{share:.2f}")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments, "nothing written")
