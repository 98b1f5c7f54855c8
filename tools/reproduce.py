"""Command line: numbers that the papers report, measured on your own networks and shards."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a clone, without installation

if __name__ == "__main__":
    from kdstream.cli.frame import quiet_imports

    quiet_imports()

import torch
import yaml
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import nn

from kdstream.addresses import public
from kdstream.analysis import accuracy as accurate
from kdstream.analysis import peakiness as peaky
from kdstream.atomic import write_atomic
from kdstream.cli.frame import CommandParser, imported
from kdstream.data.shards import ShardSet, open_shards
from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models.pretrained import check_weights, load_for
from kdstream.models.taps import Tapped
from kdstream.recipe import class_choice
from kdstream.stream.language import Call, parse_calls
from kdstream.terminal import say_error, visible

EXAMPLES = """examples:
  python tools/reproduce.py evaluate runs/quickstart/coded_kd shards/digits
  python tools/reproduce.py evaluate ckpt_epoch_240.pth shards/cifar100 --split test --model resnet56
  python tools/reproduce.py peakiness runs/teachers/cifar100-resnet56 shards/cifar100
"""


# ---- evaluate


def add_evaluate(commands: Any) -> None:
    """How often a network is right, how well it knows that, and which classes it takes for which."""
    parser = commands.add_parser("evaluate", help=add_evaluate.__doc__, description=add_evaluate.__doc__)
    _add_shared(parser, "WEIGHTS", "val", "evaluate")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace, console: Console) -> None:
    """Measure, write evaluate.json, confusion.png and reliability.png, print the tables."""
    job = _prepare(options, "evaluate")
    with _measuring(console, "evaluate", job) as advance:
        result = accurate.accuracy(job.network, job.data, job.mean, job.std, advance=advance, **job.place)
    title = f"{job.name} on {result.samples:,} images of {job.data.name}/{job.data.split}"
    _write(job.out / "evaluate.json", {"weights": public(options.weights), **job.about, **result.as_dict()})
    _write(job.out / "confusion.png", accurate.confusion_figure(result, f"{title}: top-1 {result.top1:.2f} %"))
    _write(job.out / "reliability.png", accurate.reliability_figure(result, title))
    _show(console, title, accuracy_table(result))
    _show(console, *classes_table(result))
    if result.mistakes(1):
        _show(console, "most frequent mistakes", mistakes_table(result))
    _say(console, f"calibration error: expected, over {accurate.BINS} bins of confidence (Guo et al. 2017)")
    _end(console, job, result.samples, "evaluate.json, confusion.png, reliability.png")


def accuracy_table(result: accurate.Accuracy) -> Table:
    """What holds for the whole split."""
    table = Table(box=SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_row("top-1, %", f"{result.top1:.2f}")
    table.add_row(f"top-{min(5, len(result.classes))}, %", f"{result.top5:.2f}")
    table.add_row("loss, nats", f"{result.loss:.4f}")
    table.add_row("calibration error, %", f"{result.calibration_error:.2f}")
    return table


def classes_table(result: accurate.Accuracy, most: int = 20, shown: int = 10) -> tuple[str, Table]:
    """Heading and table of the accuracy by class; only the least accurate ones where there are many."""
    rows = list(zip(result.classes, result.confusion.sum(1).tolist(), result.per_class, strict=True))
    heading = "by class"
    if len(rows) > most:
        rows = sorted((row for row in rows if row[2] is not None), key=lambda row: row[2])[:shown]
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


# ---- peakiness: Tables 1 and A.8 of "A coded knowledge distillation framework ..."


def add_peakiness(commands: Any) -> None:
    """How sure a teacher is of its answers, for original and for coded images."""
    parser = commands.add_parser("peakiness", help=add_peakiness.__doc__, description=add_peakiness.__doc__)
    _add_shared(parser, "TEACHER", "train", "peakiness")
    parser.add_argument("--selector", default="hkl", help="hkl (default), fixed(50), random(50, 100), module:function")
    parser.add_argument("--delta", type=int, default=10, help="step between JPEG qualities (default: 10)")
    parser.add_argument("--subsampling", default="4:4:4", help="of the chroma: 4:4:4 (default) or 4:2:0")
    parser.set_defaults(run=run_peakiness)


def run_peakiness(options: argparse.Namespace, console: Console) -> None:
    """Measure, write peakiness.json and peakiness.png, print the table."""
    selector = _selector(options.selector)
    job = _prepare(options, "peakiness")
    coding = {"delta": options.delta, "subsampling": options.subsampling}
    with _measuring(console, "peakiness", job) as advance:
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
    _write(job.out / "peakiness.json", about)
    _write(job.out / "peakiness.png", peaky.figure(result, f"{title} ({chosen_by})"))
    _show(console, title, answers_table(result))
    _show(console, f"chosen by {chosen_by}", qualities_table(result))
    _say(
        console,
        f"covariance: {peaky.COVARIANCE}. The paper gives no formula for its Table A.8, which may be another number: "
        "compare the two columns here, not with that table",
        f"T. stddev: mean over the classes of sqrt(S_cc / {peaky.SUBSET}), the spread of the mean probability of "
        f"{peaky.SUBSET} images (Wang et al. 2022)",
    )
    _end(console, job, result.samples, "peakiness.json, peakiness.png")


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


@dataclass
class _Job:
    """A network and a split to measure it on.

    Attributes:
        name: what to call the network.
        network: on the device, in eval mode.
        data: the split.
        mean, std: that images are standardised with.
        place: size, limit, batch_size, workers, device: how the images are read.
        out: folder for the results.
        about: what the results are of, for the JSON.
        note: what is to be known of the network's classes.
        seconds: how long it took.
    """

    name: str
    network: nn.Module
    data: ShardSet
    mean: Sequence[float]
    std: Sequence[float]
    place: dict[str, Any]
    out: Path
    about: dict[str, Any]
    note: str | None = None
    seconds: float = 0.0


def _add_shared(parser: argparse.ArgumentParser, what: str, split: str, command: str) -> None:
    parser.add_argument(
        "weights", metavar=what, help="a folder that kdstream exported, a file of weights, or its http(s) address"
    )
    parser.add_argument("shards", metavar="SHARDS", help="a data set folder")
    parser.add_argument(
        "--model", metavar="NAME", help="the network that a file of weights is for, as resnet56 (default: recognised)"
    )
    parser.add_argument(
        "--classes",
        metavar="LIST",
        help="which of the network's outputs stand for the data's classes: numbers or names in the data's order, as "
        "[0, 3, 7]; or same (default: found by name, where both name theirs)",
    )
    parser.add_argument(
        "--num-classes",
        type=int,
        metavar="C",
        help="the data's labels are numbers of C classes, of which some do not occur",
    )
    parser.add_argument("--split", default=split, metavar="NAME", help=f"default: {split}")
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="cut the central square to N x N, for photographs (default: as trained, where an export says)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="N images only, drawn at random once and for all")
    parser.add_argument("--batch-size", type=int, default=100, metavar="N", help="images at a time (default: 100)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="reader processes (default: 0)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--out", metavar="FOLDER", help=f"for JSON and PNG (default: runs/{command}-<name>)")


def _prepare(options: argparse.Namespace, command: str) -> _Job:
    """Check the shared options and load what they name; nothing is written."""
    device = _device(options.device)
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: it is a number of processes, 0 or more")
    choice = _choice(options.classes)
    data = open_shards(os.path.join(options.shards, options.split))
    if options.num_classes is not None:
        data.number_classes(options.num_classes)
    check_weights(options.weights)
    name = _name(options.weights)
    out = Path(options.out or f"runs/{command}-{name}")
    _check_place(out)
    names = {"choice": choice, "option": "--classes", "count_option": "--num-classes"}
    network, note = load_for(data.classes, options.weights, model=options.model, **names)
    size = options.size if options.size is not None else _trained_size(network, data)
    if size is None and data.image_size is None:
        raise UserError(f"the images of {options.shards} differ in size: give --size N, as in --size 224")
    about = {
        "teacher_hash" if command == "peakiness" else "weights_hash": weights_hash(network),
        "shards": f"{data.name}/{data.split}",
        "fingerprint": data.fingerprint,
        "size": size,
        "limit": options.limit,
    }
    return _Job(
        name=name,
        network=network.requires_grad_(False).eval().to(device),
        data=data,
        mean=network.about["mean"] or data.mean,
        std=network.about["std"] or data.std,
        place={
            "size": size,
            "limit": options.limit,
            "batch_size": options.batch_size,
            "workers": options.workers,
            "device": device,
        },
        out=out,
        about=about,
        note=note,
    )


def _choice(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return class_choice(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--classes {text!r}: {' '.join(str(error).split())}") from None


def _trained_size(network: nn.Module, data: ShardSet) -> int | None:
    """The side of the square that an export was trained on, where the images have another size; else None."""
    trained = network.about["image_size"]
    height, width = (trained, trained) if isinstance(trained, int) else trained or (None, None)
    return height if height == width and (height, width) != data.image_size else None


@contextlib.contextmanager
def _measuring(console: Console, what: str, job: _Job) -> Iterator[Callable[[int], None]]:
    """A progress bar; gives what advances it. Notes the time."""
    if job.note is not None:
        _say(console, f"note: {job.note}")
    with _progress(console) as progress:
        bar = progress.add_task(what, total=min(job.place["limit"] or len(job.data), len(job.data)))
        yield lambda count: progress.advance(bar, count)
        job.seconds = progress.tasks[bar].elapsed or 0.0


def _show(console: Console, heading: str, table: Table) -> None:
    # Not the table's own title, which is broken at the width of the table.
    console.print(visible(heading), style="bold", highlight=False, markup=False)
    console.print(table)


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(visible(line), highlight=False, markup=False)


def _end(console: Console, job: _Job, count: int, files: str) -> None:
    _say(console, f"{count:,} images in {job.seconds:.1f} s: {count / max(job.seconds, 1e-9):,.0f} images/s")
    console.print(visible(f"written: {job.out}/{files}"), highlight=False, markup=False, soft_wrap=True)


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


def _name(place: str) -> str:
    """What to call a network: its folder, for an export; else its file."""
    path = Path(os.path.abspath(public(place)))
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


def _write(path: Path, content: bytes | dict[str, Any]) -> None:
    data = content if isinstance(content, bytes) else (json.dumps(content, indent=1) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; name another folder with --out") from None


COMMANDS = (add_evaluate, add_peakiness)
"""Each takes argparse's subparsers, adds its own parser and sets ``run(options, console)`` as its default."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    console = Console()
    try:
        parser = CommandParser(
            description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        commands = parser.add_subparsers(required=True, metavar="COMMAND")
        for add in COMMANDS:
            add(commands)
        options = parser.parse_args(arguments)
        options.run(options, console)
    except UserError as error:
        say_error(f"reproduce: {error}")
        return 2
    except KeyboardInterrupt:
        say_error("reproduce: interrupted, nothing written")
        return 130
    return 0


if __name__ == "__main__":
    imported()
    sys.path.insert(1, os.getcwd())  # selectors and networks by dotted path may be the user's own
    sys.exit(main())
