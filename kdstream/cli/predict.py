"""``kdstream predict``: what a trained network sees in pictures, as a table or as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdstream.cli.frame import CommandParser, command_parser, find_own_modules, run_command
from kdstream.errors import UserError
from kdstream.terminal import visible

if TYPE_CHECKING:
    from torch import nn

    from kdstream.analysis.predict import Picture, Prediction, View

EXAMPLES = """examples:
  kdstream predict runs/birds bird.jpg other.png
  kdstream predict runs/birds photos/ --top 5 --json > answers.jsonl
  kdstream predict runs/birds bird.jpg --from last
  kdstream predict published:resnet56@cifar100 cat.png --size 32

Pictures are seen as the evaluation images of the training were. A file that cannot be read is named, the others are
answered for, and the exit code is 2.
"""


def _parser() -> CommandParser:
    parser = command_parser("predict", __doc__, EXAMPLES)
    parser.add_argument(
        "weights",
        metavar="RUN",
        help="the folder of a training, its student.json, a file of weights, or the name of published ones",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="an image, or a folder: all images below it")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="classes to name for each (default: 3)")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each file, in place of the table")
    parser.add_argument(
        "--from",
        dest="checkpoint",
        choices=("last", "best"),
        help="the weights so far of a training that goes on or was interrupted",
    )
    parser.add_argument("--model", metavar="NAME", help="the network that a file of weights is for")
    parser.add_argument("--size", type=int, metavar="N", help="images of N x N pixels (default: as trained)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--trust-code", action="store_true", help="run the code of a network of your own")
    return parser


def _run(options: argparse.Namespace) -> None:
    from kdstream.analysis.predict import as_pictures, view_of
    from kdstream.cli.measuring import find_device

    device = find_device(options.device)
    pictures, _ = as_pictures(options.files)
    network = _network(options).to(device)
    view = view_of(network, options.size)
    console = Console(highlight=False)
    unread = 0
    found: list[Prediction] = []
    for one in _answers(network, pictures, view, options):
        unread += one.error is not None
        if options.json:
            print(json.dumps(_as_json(one), ensure_ascii=False), flush=True)
        else:
            found.append(one)
    if not options.json:
        console.print(_table(found, console.width))
    for one in found:
        if one.error is not None:
            console.print(visible(str(one)), markup=False, soft_wrap=True)
    if unread:
        raise UserError(f"{unread:,} of {len(pictures):,} files cannot be read")


def _network(options: argparse.Namespace) -> nn.Module:
    from kdstream.addresses import is_published, is_url
    from kdstream.api.students import load_student
    from kdstream.models.pretrained import check_weights, load_teacher

    place = Path(options.weights)
    try:
        if options.checkpoint is not None:
            return load_student(place, options.trust_code, checkpoint=options.checkpoint)
        foreign = is_published(options.weights) or is_url(options.weights) or not _is_student(place)
        if not foreign or place.is_dir():
            return load_student(place, options.trust_code)
    except UserError as error:
        raise UserError(str(error).replace("load_student(path, trust_code=True)", "add --trust-code")) from error
    check_weights(options.weights)
    return load_teacher(options.weights, model=options.model)


def _is_student(place: Path) -> bool:
    return place.is_dir() or (place.suffix in (".json", ".safetensors") and place.with_suffix(".json").is_file())


def _answers(
    network: nn.Module, pictures: Sequence[Picture], view: View, options: argparse.Namespace
) -> Iterator[Prediction]:
    """Predictions as they come, behind a bar on a terminal."""
    from kdstream.analysis.predict import predictions
    from kdstream.bars import progress_bars

    errors = Console(stderr=True)
    shown = progress_bars(errors) if len(pictures) > options.batch_size else None
    bar = None if shown is None else shown.add_task("predict", total=len(pictures))
    with shown or contextlib.nullcontext():
        for one in predictions(network, pictures, view, options.top, options.batch_size):
            if shown is not None and bar is not None:
                shown.advance(bar)
            yield one


def _as_json(one: Prediction) -> dict[str, object]:
    if one.error is not None:
        return {"file": one.source, "error": one.error}
    return {"file": one.source, "top": [{"class": name, "probability": share} for name, share in one.top]}


def _table(found: Sequence[Prediction], width: int) -> Table:
    """A row a file: its name, its class, and what else it may be."""
    table = Table(box=SIMPLE)
    table.add_column("file", overflow="ellipsis", no_wrap=True, max_width=max(width // 2, 20))
    table.add_column("class", overflow="ellipsis", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True)
    rest = any(len(one.top) > 1 for one in found)
    if rest:
        table.add_column("then", overflow="fold")
    for one in found:
        more = ", ".join(f"{name} {100 * share:.1f}" for name, share in one.top[1:])
        first, percent = (one.label or "", f"{100 * (one.probability or 0):.1f}") if one.top else ("not read", "")
        cells = [Text(visible(str(one.source))), Text(visible(first)), Text(percent)]
        table.add_row(*cells, *([Text(visible(more))] if rest else []))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments)
