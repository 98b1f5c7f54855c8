"""``kdstream models``: parameters, multiply-adds and taps of networks by name; published weights."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from kdstream.cli.frame import CommandParser, command_parser, find_own_modules, run_command
from kdstream.errors import UserError

if TYPE_CHECKING:
    from kdstream.models.macs import Cost

EXAMPLES = """examples:
  kdstream models
  kdstream models resnet56 vgg8 --classes 10 --taps
  kdstream models resnet18 --size 224 --classes 1000
  kdstream models --published
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments)


def _run(options: argparse.Namespace) -> None:
    if options.published:
        _list_published(options)
        return
    from kdstream.models import MODELS
    from kdstream.models.macs import cost

    console, errors = Console(), Console(stderr=True)
    names = options.names or list(MODELS)
    costs = [
        cost(name, options.classes, options.size)
        for name in track(names, "Counting", console=errors, transient=True, disable=not errors.is_terminal)
    ]
    if options.json:
        print(json.dumps(_plain(costs, options.classes, options.size), indent=2))
        return
    title = f"{options.size} x {options.size} images, {options.classes} classes"
    console.print(_overview(costs, title))
    if options.taps:
        for each in costs:
            console.print(_taps(each))
    elif not options.names:
        console.print(
            "MACs: multiply-adds of one image. Other networks by name: torchvision's (resnet18), timm's "
            "(timm:deit_tiny_patch16_224), your own (package.module:factory). --taps: paths and shapes. "
            "--published: trained ones.",
            highlight=False,
            markup=False,
        )


def _list_published(options: argparse.Namespace) -> None:
    """The table of published weights, or all that is known of them as JSON."""
    from kdstream.addresses import PUBLISHED
    from kdstream.models.download import cached
    from kdstream.models.published import facts, known

    if options.names or options.taps:
        raise UserError("--published lists all published weights: leave names and --taps out")
    if options.json:
        print(json.dumps([facts(one) for one in known().values()], indent=2))
        return
    table = Table(title="published weights", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("Name", no_wrap=True)
    table.add_column("Top-1, %", justify="right", no_wrap=True)
    table.add_column("Here", no_wrap=True)
    table.add_column("From")
    for name, one in known().items():
        here = "yes" if cached(one.address).exists() else ""
        table.add_row(f"{PUBLISHED}{name}", f"{one.top1:.2f}", here, one.source)
    console = Console()
    console.print(table)
    console.print(
        "Top-1 as published. Where weights are named: teacher=published:wrn_40_2@cifar100. Here: downloaded already. "
        "--json: addresses, checksums, mean and deviation.",
        highlight=False,
        markup=False,
    )


def _parser() -> CommandParser:
    parser = command_parser("models", __doc__, EXAMPLES)
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks; none: kdstream's own")
    parser.add_argument("--size", type=_positive, default=32, help="height and width of the images (default 32)")
    parser.add_argument("--classes", type=_positive, default=100, help="number of classes (default 100)")
    parser.add_argument("--published", action="store_true", help="weights that others published, by name, instead")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--taps", action="store_true", help="every tap with its module path and shape")
    output.add_argument("--json", action="store_true", help="all of it as JSON")
    return parser


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return value


def _overview(costs: list[Cost], title: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,  # 80 columns hold the longest line
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("Model", no_wrap=True)
    table.add_column("Parameters", justify="right", no_wrap=True)
    table.add_column("MACs", justify="right", no_wrap=True)
    table.add_column("Taps")
    for each in costs:
        table.add_row(each.name, f"{each.parameters:,}", readable(each.macs), shortened(each.taps))
    return table


def _taps(each: Cost) -> Table:
    table = Table(
        "Tap", "Module path", "Shape", title=each.name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for tap, (path, shape) in each.taps.items():
        table.add_row(tap, path, " x ".join(map(str, shape)))
    return table


def _plain(costs: list[Cost], classes: int, size: int) -> dict:
    models = {
        each.name: {
            "parameters": each.parameters,
            "macs": each.macs,
            "taps": {tap: {"path": path, "shape": shape} for tap, (path, shape) in each.taps.items()},
        }
        for each in costs
    }
    return {"size": size, "classes": classes, "models": models}


def readable(macs: int) -> str:
    """Four digits at most and a unit: 12,890,000 -> ``12.89 M``."""
    unit, factor = ("G", 1e9) if macs >= 1e9 else ("M", 1e6)
    return f"{macs / factor:.{2 if macs < 100 * factor else 1}f} {unit}"


def shortened(taps: Iterable[str]) -> str:
    """Tap names with runs of numbers drawn together: ``stem block1..3 (.pre) map penultimate``."""
    groups: dict[str, list[int]] = {}  # in the order of their first tap; no numbers: the name itself
    for tap in taps:
        found = re.fullmatch(r"(.*?)(\d+)(\.pre)?", tap)
        if found:
            groups.setdefault(found[1] + "{}" + (found[3] or ""), []).append(int(found[2]))
        else:
            groups[tap] = []
    words = []
    for name, numbers in groups.items():
        plain = name.removesuffix(".pre")
        if name != plain and groups.get(plain) == numbers:
            continue  # said beside the plain ones
        words.append(name.format(_span(numbers)))
        if numbers and name == plain and groups.get(f"{name}.pre") == numbers:
            words.append("(.pre)")
    return " ".join(words)


def _span(numbers: list[int]) -> str:
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}..{numbers[-1]}"
    return ",".join(map(str, numbers))
