"""``kdstream peakiness``: how sure a teacher is of its answers, for original and for coded images.

Tables 1 and A.8 of "A coded knowledge distillation framework for image classification based on adaptive JPEG encoding".
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from kdstream.addresses import public
from kdstream.cli.frame import CommandParser, command_parser, find_own_modules, run_command
from kdstream.cli.measuring import add_options, end, measuring, prepare, say, show, write
from kdstream.errors import UserError

if TYPE_CHECKING:
    from kdstream.analysis import peakiness as peaky
    from kdstream.stream.language import Call

EXAMPLES = """example:
  kdstream peakiness runs/teachers/cifar100-resnet56 shards/cifar100
"""


def _parser() -> CommandParser:
    parser = command_parser("peakiness", __doc__, EXAMPLES)
    add_options(parser, "TEACHER", "train", "peakiness")
    parser.add_argument("--selector", default="hkl", help="hkl (default), fixed(50), random(50, 100), module:function")
    parser.add_argument("--delta", type=int, default=10, help="step between JPEG qualities (default: 10)")
    parser.add_argument("--subsampling", default="4:4:4", help="of the chroma: 4:4:4 (default) or 4:2:0")
    return parser


def _run(options: argparse.Namespace) -> None:
    """Measure, write peakiness.json and peakiness.png, print the table."""
    from kdstream.analysis import peakiness as peaky
    from kdstream.models.taps import Tapped

    console = Console()
    selector = _selector(options.selector)
    job = prepare(options, "peakiness")
    coding = {"delta": options.delta, "subsampling": options.subsampling}
    with measuring(console, "peakiness", job) as advance:
        result = peaky.peakiness(
            Tapped(job.network),
            job.data,
            job.mean,
            job.std,
            selector=selector,
            **coding,
            advance=advance,
            **job.place,
        )
    about = {
        "teacher": public(options.weights),
        **job.about,
        "selector": options.selector,
        **coding,
        "temperature": 1,
        "covariance_estimator": peaky.COVARIANCE,
        **result.as_dict(),
    }
    title = f"{job.name} on {result.samples:,} images of {job.data.name}/{job.data.split}"
    chosen_by = f"{options.selector}, delta {options.delta}, {options.subsampling}"
    write(job.out / "peakiness.json", about)
    write(job.out / "peakiness.png", peaky.figure(result, f"{title} ({chosen_by})"))
    show(console, title, answers_table(result))
    show(console, f"chosen by {chosen_by}", qualities_table(result))
    say(
        console,
        f"covariance: {peaky.COVARIANCE}. The paper gives no formula for its Table A.8, which may be another number: "
        "compare the two columns here, not with that table",
        f"T. stddev: mean over the classes of sqrt(S_cc / {peaky.SUBSET}), the spread of the mean probability of "
        f"{peaky.SUBSET} images (Wang et al. 2022)",
    )
    end(console, job, result.samples, "peakiness.json, peakiness.png")


def answers_table(result: peaky.Peakiness) -> Table:
    """Original against coded, one row a measure."""
    table = Table(box=SIMPLE)
    table.add_column("temperature 1", no_wrap=True)
    for column in ("original", "coded"):
        table.add_column(column, justify="right", no_wrap=True)
    sides = (result.original, result.coded)
    table.add_row("entropy, nats", *(f"{side.entropy_mean:.4f} (±{side.entropy_std:.4f})" for side in sides))
    table.add_row(
        "ground-truth probability", *(f"{side.probability_mean:.4f} (±{side.probability_std:.4f})" for side in sides)
    )
    table.add_row("top-1, %", *(f"{side.top1:.2f}" for side in sides))
    table.add_row("covariance, x 1e-5", *(f"{1e5 * side.covariance:.4f}" for side in sides))
    table.add_row("T. stddev, x 1e-5", *(f"{1e5 * side.mean_probability_std:.4f}" for side in sides))
    return table


def qualities_table(result: peaky.Peakiness) -> Table:
    """The histogram of the chosen qualities; by tens where there are many."""
    table = Table(box=SIMPLE)
    for column in ("JPEG quality", "images", "%"):
        table.add_column(column, justify="right", no_wrap=True)
    by_tens = len(result.qualities) > 24
    rows: dict[str, int] = {}
    for quality, count in result.qualities.items():
        row = "-1 (original)" if quality == -1 else str(quality)
        if by_tens and 0 <= quality < 100:
            row = f"{quality // 10 * 10}..{quality // 10 * 10 + 9}"
        rows[row] = rows.get(row, 0) + count
    for row, count in rows.items():
        table.add_row(row, f"{count:,}", f"{100 * count / result.samples:.2f}")
    return table


def _selector(text: str) -> Call:
    from kdstream.stream.language import parse_calls

    try:
        calls = parse_calls(text)
    except UserError:
        calls = []
    if len(calls) != 1:
        raise UserError(f"--selector {text!r}: it is hkl, fixed(50), random(50, 100) or my_package.module:function")
    return calls[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments, "nothing written")
