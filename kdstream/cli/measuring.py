"""What the commands share that measure a network on a split: options, loading, a bar, tables, files."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from kdstream.addresses import PUBLISHED, is_published, public
from kdstream.atomic import write_atomic
from kdstream.bars import progress_bars
from kdstream.errors import UserError
from kdstream.notes import about_of
from kdstream.terminal import visible

if TYPE_CHECKING:
    import torch
    from torch import nn

    from kdstream.data.shards import ShardSet


@dataclass
class Measurement:
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


def add_options(parser: argparse.ArgumentParser, what: str, split: str, command: str) -> None:
    parser.add_argument(
        "weights",
        metavar=what,
        help="a folder that kdstream exported, a file of weights, its http(s) address, or the name of published ones "
        "(published:wrn_40_2@cifar100)",
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


def prepare(options: argparse.Namespace, command: str) -> Measurement:
    """Check the shared options and load what they name; nothing is written."""
    from kdstream.data.shards import open_shards
    from kdstream.hashing import weights_hash
    from kdstream.models.pretrained import check_weights, load_for

    device = device_of(options.device)
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
    return Measurement(
        name=name,
        network=network.requires_grad_(False).eval().to(device),
        data=data,
        mean=about_of(network)["mean"] or data.mean,
        std=about_of(network)["std"] or data.std,
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
    from kdstream.recipe import class_choice
    from kdstream.safe_yaml import parse_yaml

    if text is None:
        return None
    try:
        return class_choice(parse_yaml(text, f"--classes {text!r}:"))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--classes {text!r}: {' '.join(str(error).split())}") from None


def _trained_size(network: nn.Module, data: ShardSet) -> int | None:
    """The side of the square that an export was trained on, where the images have another size; else None."""
    trained = about_of(network)["image_size"]
    height, width = (trained, trained) if isinstance(trained, int) else trained or (None, None)
    return height if height == width and (height, width) != data.image_size else None


@contextlib.contextmanager
def measuring(console: Console, what: str, job: Measurement) -> Iterator[Callable[[int], None]]:
    """A progress bar; gives what advances it. Notes the time."""
    if job.note is not None:
        say(console, f"note: {job.note}")
    with progress_bars(console) as progress:
        bar = progress.add_task(what, total=min(job.place["limit"] or len(job.data), len(job.data)))
        yield lambda count: progress.advance(bar, count)
        job.seconds = progress.tasks[bar].elapsed or 0.0


def show(console: Console, heading: str, table: Table) -> None:
    # Not the table's own title, which is broken at the width of the table.
    console.print(visible(heading), style="bold", highlight=False, markup=False)
    console.print(table)


def say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(visible(line), highlight=False, markup=False)


def end(console: Console, job: Measurement, count: int, files: str) -> None:
    say(console, f"{count:,} images in {job.seconds:.1f} s: {count / max(job.seconds, 1e-9):,.0f} images/s")
    console.print(visible(f"written: {job.out}/{files}"), highlight=False, markup=False, soft_wrap=True)


def device_of(name: str | None) -> torch.device:
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise UserError(f"--device {name}: cannot be used here ({reason}); take cpu or cuda") from None
    return device


def _name(place: str) -> str:
    """What to call a network: its folder, for an export; published weights by their name; else its file."""
    if is_published(place):
        return place.removeprefix(PUBLISHED)
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


def write(path: Path, content: bytes | dict[str, Any]) -> None:
    data = content if isinstance(content, bytes) else (json.dumps(content, indent=1) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; name another folder with --out") from None
