"""Command line: numbers that the papers report, measured on your own networks and shards."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a clone, without installation

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kdstream import recipe
from kdstream.analysis import peakiness as peaky
from kdstream.atomic import write_atomic
from kdstream.errors import UserError
from kdstream.models.taps import Tapped
from kdstream.stream.language import Call, parse_calls
from kdstream.stream.shards import ShardSet, open_shards
from kdstream.training.networks import Teacher, load_teacher

EXAMPLES = """example:
  python tools/reproduce.py peakiness runs/teachers/cifar100-resnet56 shards/cifar100
"""


# ---- peakiness: Tables 1 and A.8 of "A coded knowledge distillation framework ..."


def add_peakiness(commands: Any) -> None:
    """How sure a teacher is of its answers, for original and for coded images."""
    parser = commands.add_parser("peakiness", help=add_peakiness.__doc__, description=add_peakiness.__doc__)
    parser.add_argument("teacher", metavar="TEACHER", help="a folder that kdstream exported, or a file of weights")
    parser.add_argument("shards", metavar="SHARDS", help="a data set folder")
    parser.add_argument("--model", metavar="NAME", help="the network that a file of weights is for, as resnet56")
    parser.add_argument("--split", default="train", metavar="NAME", help="default: train")
    parser.add_argument("--selector", default="hkl", help="hkl (default), fixed(50), random(50, 100), module:function")
    parser.add_argument("--delta", type=int, default=10, help="step between JPEG qualities (default: 10)")
    parser.add_argument("--subsampling", default="4:4:4", help="of the chroma: 4:4:4 (default) or 4:2:0")
    parser.add_argument("--size", type=int, metavar="N", help="cut the central square to N x N, for photographs")
    parser.add_argument("--limit", type=int, metavar="N", help="N images only, drawn at random once and for all")
    parser.add_argument("--batch-size", type=int, default=100, metavar="N", help="images at a time (default: 100)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="reader processes (default: 0)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--out", metavar="FOLDER", help="for JSON and PNG (default: runs/peakiness-<teacher>)")
    parser.set_defaults(run=run_peakiness)


def run_peakiness(options: argparse.Namespace, console: Console) -> None:
    """Measure, write peakiness.json and peakiness.png, print the table."""
    device = _device(options.device)
    selector = _selector(options.selector)
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: it is a number of processes, 0 or more")
    data = open_shards(os.path.join(options.shards, options.split))
    if options.size is None and data.image_size is None:
        raise UserError(f"the images of {options.shards} differ in size: give --size N, as in --size 224")
    teacher = _teacher(options.teacher, options.model, data)
    name = _name(options.teacher)
    out = Path(options.out or f"runs/peakiness-{name}")
    _check_place(out)
    total = min(options.limit or len(data), len(data))
    with _progress(console) as progress:
        bar = progress.add_task("peakiness", total=total)
        result = peaky.peakiness(
            Tapped(teacher.network.to(device)),
            data,
            teacher.mean or data.mean,
            teacher.std or data.std,
            selector=selector,
            delta=options.delta,
            subsampling=options.subsampling,
            size=options.size,
            limit=options.limit,
            batch_size=options.batch_size,
            workers=options.workers,
            device=device,
            advance=lambda count: progress.advance(bar, count),
        )
        seconds = progress.tasks[bar].elapsed or 0.0
    coding = f"{options.selector}, delta {options.delta}, {options.subsampling}"
    about = {
        "teacher": options.teacher,
        "teacher_hash": teacher.hash,
        "shards": f"{data.name}/{data.split}",
        "fingerprint": data.fingerprint,
        "selector": options.selector,
        "delta": options.delta,
        "subsampling": options.subsampling,
        "size": options.size,
        "limit": options.limit,
        "temperature": 1,
        "covariance_estimator": peaky.COVARIANCE,
        **result.as_dict(),
    }
    title = f"{name} on {result.samples:,} images of {data.name}/{data.split}"
    _write(out / "peakiness.json", (json.dumps(about, indent=1) + "\n").encode())
    _write(out / "peakiness.png", peaky.figure(result, f"{title} ({coding})"))
    for heading, table in ((title, answers_table(result)), (f"chosen by {coding}", qualities_table(result))):
        # Not the tables' own titles, which are broken at the width of the table.
        console.print(heading, style="bold", highlight=False, markup=False)
        console.print(table)
    for line in (
        f"covariance: {peaky.COVARIANCE}. The paper gives no formula for its Table A.8, which may be another "
        "number: compare the two columns here, not with that table",
        f"T. stddev: mean over the classes of sqrt(S_cc / {peaky.SUBSET}), the spread of the mean probability of "
        f"{peaky.SUBSET} images (Wang et al. 2022)",
        f"{result.samples:,} images in {seconds:.1f} s: {result.samples / max(seconds, 1e-9):,.0f} images/s",
    ):
        console.print(line, highlight=False, markup=False)
    console.print(f"written: {out}/peakiness.json, peakiness.png", highlight=False, markup=False, soft_wrap=True)


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


# ---- what commands share


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Images a second, over the last half minute."""
        return Text("" if not task.speed else f"{task.speed:,.0f} images/s")


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise UserError(f"--device {name}: cannot be used here ({reason}); take cpu or cuda") from None
    return device


def _selector(text: str) -> Call:
    try:
        calls = parse_calls(text)
    except UserError:
        calls = []
    if len(calls) != 1:
        raise UserError(f"--selector {text!r}: it is hkl, fixed(50), random(50, 100) or my_package.module:function")
    return calls[0]


def _teacher(place: str, model: str | None, data: ShardSet) -> Teacher:
    path = Path(place)
    if not path.exists():
        raise UserError(f"{place}: no such file or folder; TEACHER is a folder that kdstream exported, or weights")
    exported = path.is_dir() or path.with_suffix(".json").is_file()
    if model is None and not exported:
        raise UserError(f"{place} does not say which network it is for: give --model NAME, as in --model resnet56")
    return load_teacher(recipe.Teacher(model=model, weights=place), data.num_classes)


def _name(place: str) -> str:
    """What to call a teacher: its folder, for an export; else its file."""
    path = Path(os.path.abspath(place))
    return path.name if path.is_dir() else path.parent.name if path.stem == "student" else path.stem


def _check_place(folder: Path) -> None:
    """That results can be written to a folder, known before the work and without making it."""
    place = Path(os.path.abspath(folder))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{place} is a file, so {folder} can be no folder: name another with --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{place}: no permission to write there; name another folder with --out")


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; name another folder with --out") from None


COMMANDS = (add_peakiness,)
"""Each takes argparse's subparsers, adds its own parser and sets ``run(options, console)`` as its default."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    console, errors = Console(), Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        parser = _Parser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
        commands = parser.add_subparsers(required=True, metavar="COMMAND")
        for add in COMMANDS:
            add(commands)
        options = parser.parse_args(arguments)
        options.run(options, console)
    except UserError as error:
        errors.print(f"reproduce: {error}")
        return 2
    except KeyboardInterrupt:
        errors.print("reproduce: interrupted, nothing written")
        return 130
    return 0


if __name__ == "__main__":
    sys.path.insert(1, os.getcwd())  # selectors and networks by dotted path may be the user's own
    sys.exit(main())
