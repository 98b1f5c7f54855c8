"""``kdstream shards``: images from a folder, a table or a known data set become a data set of WebDataset shards."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdstream.cli.frame import CommandParser, command_parser, find_own_modules, run_command
from kdstream.errors import UserError
from kdstream.terminal import visible

if TYPE_CHECKING:
    from kdstream.convert.make_shards import Conversion
    from kdstream.data.dataset_info import SplitInfo

EPILOG = """sources:
  digits             1,797 handwritten digits that ship with scikit-learn
  imagefolder:DIR    DIR/CLASS/IMAGE, or DIR/train/CLASS/IMAGE with val/ and test/ beside it, or DIR/CLASS/train/IMAGE
  cifar10[:DIR]      CIFAR-10 through torchvision, from DIR, downloaded when absent
  cifar100[:DIR]     CIFAR-100, likewise
  tars:DIR           shards that exist, of kdstream or others, to be cut anew; also tars:DIR/train-{000..099}.tar
  hf:ORG/NAME        a data set of the Hugging Face hub, its parquet files or image folders; also hf:FOLDER
  csv:FILE           a table with the columns path, label and, if you like, split
  imagenet:DIR       ImageNet: train/ in class folders, val/ likewise or flat with the devkit or a list beside it
  cub200:DIR         CUB-200-2011, by its own lists
  stanford_dogs:DIR  Stanford Dogs, by its own lists
  cifar10c:DIR       CIFAR-10-C, a split for every corruption and severity (fog_3); cifar100c:DIR likewise

examples:
  kdstream shards imagefolder:/data/birds shards/birds
  kdstream shards imagefolder:/data/photos shards/photos --resize 256 --hold-out 0.1
  kdstream shards --verify shards/birds
"""


def _parser() -> CommandParser:
    parser = command_parser("shards", __doc__, EPILOG)
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="where the images come from, see below")
    parser.add_argument("dest", nargs="?", metavar="DEST", help="the data set folder to make")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="these splits only (default: all of the source)")
    parser.add_argument("--shard-size", metavar="BYTES", help="about 100M by default, less for small sets")
    parser.add_argument("--shard-count", type=int, metavar="N", help="shards of each split, instead of a size")
    parser.add_argument("--processes", type=int, metavar="N", help="default: one per core; never changes the result")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the samples (default: 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N images of each split, chosen by the seed")
    parser.add_argument("--per-class", type=int, metavar="N", help="at most N images of each class of the split train")
    parser.add_argument("--list", metavar="FILE", help="of the split train, only the images that FILE names")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="at unreadable images")
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="greater images count as unreadable (default: 178,956,970)",
    )
    parser.add_argument("--resize", type=int, metavar="SHORT", help="larger images get this shorter side, as JPEG")
    parser.add_argument("--quality", type=int, metavar="Q", help="of the JPEGs of --resize (default: 95)")
    parser.add_argument(
        "--hold-out",
        type=float,
        metavar="SHARE",
        help="make a split val of this share of each class of train, as 0.1, where the source has none",
    )
    parser.add_argument(
        "--distributor",
        choices=("processes", "ray"),
        default="processes",
        help="where shards are written: in processes here, or on the Ray cluster of RAY_ADDRESS",
    )
    parser.add_argument("--force", action="store_true", help="replace what make_shards made in DEST before")
    parser.add_argument("--verify", metavar="DEST", help="check the checksums of a data set folder, and nothing else")
    parser.add_argument("--decode", action="store_true", help="with --verify: decode every image too")
    return parser


def summary(result: Conversion, dest: str) -> Table:
    """What was made, on one screen."""
    title = Text(f"{visible(dest)}: {len(result.info.classes):,} classes")
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column("split", no_wrap=True)
    for name in ("samples", "shards", "bytes", "image size", "skipped"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, part in result.info.splits.items():
        table.add_row(
            Text(visible(name)),
            f"{part.count:,}",
            f"{len(part.shards):,}",
            _bytes(sum(shard.bytes for shard in part.shards)),
            _sizes(part),
            f"{len(part.skipped):,}",
        )
    return table


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _sizes(part: SplitInfo) -> str:
    (h, w), (height, width) = part.image_size.min, part.image_size.max
    return f"{h} x {w}" if (h, w) == (height, width) else f"{h}-{height} x {w}-{width}"


def _convert(options: argparse.Namespace, console: Console) -> None:
    from kdstream.convert.make_shards import make_shards, parse_size

    if options.quality is not None and options.resize is None:
        raise UserError("--quality is that of images that --resize makes smaller: say to which shorter side")
    result = make_shards(
        options.source,
        options.dest,
        splits=options.split,
        shard_size=parse_size(options.shard_size) if options.shard_size else None,
        shard_count=options.shard_count,
        processes=options.processes,
        seed=options.seed,
        limit=options.limit,
        per_class=options.per_class,
        only=options.list,
        on_error=options.on_error,
        **({} if options.max_pixels is None else {"max_pixels": options.max_pixels}),
        resize=options.resize,
        **({} if options.quality is None else {"quality": options.quality}),
        hold_out=options.hold_out,
        distributor=options.distributor,
        force=options.force,
        console=console,
    )
    console.print(summary(result, options.dest))
    if result.converted:
        rate = result.converted / max(result.seconds, 1e-9)
        console.print(f"{result.converted:,} images in {result.seconds:.1f} s: {rate:,.0f} images/s", highlight=False)
    if result.kept_shards:
        console.print(f"{result.kept_shards:,} shards kept from an interrupted run", highlight=False)
    for note in result.notes:
        console.print(visible(f"note: {note}"), highlight=False, markup=False, soft_wrap=True)
    for name, part in result.info.splits.items():
        if part.skipped:
            first = part.skipped[0]
            console.print(
                visible(
                    f"skipped in {name}: {len(part.skipped):,} unreadable images, listed in dataset.json; the first: "
                    f"{first.file} ({first.error})"
                ),
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    command = f"accelerate launch kdstream/train.py RECIPE data.path={options.dest}"
    console.print(visible(f"next: {command}"), highlight=False, markup=False, soft_wrap=True)


def _verify(dest: str, decode: bool, console: Console) -> None:
    from kdstream.data.verify import verify

    found = verify(dest, decode, console)
    images = f", {found.decoded:,} images decoded" if found.decoded else ""
    console.print(
        f"{visible(dest)}: {found.samples:,} samples in {found.shards:,} shards of {found.splits:,} splits "
        f"({_bytes(found.bytes)}), all as recorded{images}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _run(options: argparse.Namespace) -> None:
    console = Console()
    if options.verify:
        if options.source:
            raise UserError("--verify DEST checks a data set and takes no SOURCE")
        _verify(options.verify, options.decode, console)
    elif not options.source or not options.dest:
        raise UserError("name a SOURCE and a DEST, as in: kdstream shards digits shards/digits")
    else:
        _convert(options, console)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verifies = any(argument.startswith("--verify") for argument in arguments)
    kept = "" if verifies else "finished shards are kept, run the same command again to continue"
    return run_command(_parser, _run, arguments, kept)
