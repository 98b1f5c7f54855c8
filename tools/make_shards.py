"""Command line: images from a folder, a table or a known data set become a data set folder of WebDataset shards."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a clone, without installation

if __name__ == "__main__":
    from kdstream.command import quiet_imports

    quiet_imports()

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdstream.command import CommandParser, imported
from kdstream.errors import UserError
from kdstream.stream.convert import Conversion, make_shards, parse_size
from kdstream.stream.dataset_info import SplitInfo
from kdstream.stream.image_file import MAX_PIXELS
from kdstream.stream.shards import verify
from kdstream.terminal import say_error, visible

EPILOG = """sources:
  digits             1,797 handwritten digits that ship with scikit-learn
  imagefolder:DIR    DIR/CLASS/IMAGE, or DIR/train/CLASS/IMAGE with val/ and test/ beside it, or DIR/CLASS/train/IMAGE
  cifar10[:DIR]      CIFAR-10 through torchvision, from DIR, downloaded when absent
  cifar100[:DIR]     CIFAR-100, likewise
  csv:FILE           a table with the columns path, label and, if you like, split

examples:
  python tools/make_shards.py imagefolder:/data/birds shards/birds
  python tools/make_shards.py --verify shards/birds
"""


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="where the images come from, see below")
    parser.add_argument("dest", nargs="?", metavar="DEST", help="the data set folder to make")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="these splits only (default: all of the source)")
    parser.add_argument("--shard-size", metavar="BYTES", help="about 100M by default, less for small sets")
    parser.add_argument("--shard-count", type=int, metavar="N", help="shards of each split, instead of a size")
    parser.add_argument("--processes", type=int, metavar="N", help="default: one per core; never changes the result")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the samples (default: 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N images of each split, chosen by the seed")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="at unreadable images")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="greater images count as unreadable (default: %(default)s)",
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


def _bytes(count: int) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.1f} TB"


def _sizes(part: SplitInfo) -> str:
    (h, w), (height, width) = part.image_size.min, part.image_size.max
    return f"{h} x {w}" if (h, w) == (height, width) else f"{h}-{height} x {w}-{width}"


def _convert(options: argparse.Namespace, console: Console) -> None:
    result = make_shards(
        options.source,
        options.dest,
        splits=options.split,
        shard_size=parse_size(options.shard_size) if options.shard_size else None,
        shard_count=options.shard_count,
        processes=options.processes,
        seed=options.seed,
        limit=options.limit,
        on_error=options.on_error,
        max_pixels=options.max_pixels,
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
    found = verify(dest, decode, console)
    images = f", {found.decoded:,} images decoded" if found.decoded else ""
    console.print(
        f"{visible(dest)}: {found.samples:,} samples in {found.shards:,} shards of {found.splits:,} splits "
        f"({_bytes(found.bytes)}), all as recorded{images}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


class _Output(io.TextIOBase):
    """Standard output that says so when it cannot be written, so that no other disk is blamed."""

    def __init__(self) -> None:
        self._stream = sys.stdout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except OSError as error:
            with contextlib.suppress(OSError):  # what is still to be written would fail again at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise UserError(f"cannot write the output: {error.strerror or error}") from error


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends a conversion as Ctrl-C does."""


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM."""
    output = _Output()
    console = Console(file=output)
    try:
        options = _parser().parse_args(arguments)
        if options.verify:
            if options.source:
                raise UserError("--verify DEST checks a data set and takes no SOURCE")
            _verify(options.verify, options.decode, console)
        elif not options.source or not options.dest:
            raise UserError("name a SOURCE and a DEST, as in: python tools/make_shards.py digits shards/digits")
        else:
            _convert(options, console)
        output.flush()
    except UserError as error:
        say_error(f"make_shards: {error}")
        return 2
    except KeyboardInterrupt as stopped:
        kept = "" if options.verify else ": finished shards are kept, run the same command again to continue"
        terminated = isinstance(stopped, _Terminated)
        say_error(f"make_shards: {'terminated' if terminated else 'interrupted'}{kept}")
        return 143 if terminated else 130
    return 0


if __name__ == "__main__":
    imported()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job as well
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
