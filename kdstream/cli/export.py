"""``kdstream export``: a trained student as ONNX, in int8 too, with a model card, and on the Hub if you like."""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from kdstream.addresses import is_published, is_url
from kdstream.bars import progress_bars
from kdstream.cli.frame import CommandParser, command_parser, find_own_modules, run_command
from kdstream.errors import UserError
from kdstream.notes import About, about_of
from kdstream.terminal import visible

if TYPE_CHECKING:
    from kdstream.api.int8 import Int8
    from kdstream.models.onnx_export import OnnxFile

EXAMPLES = """examples:
  kdstream export runs/quickstart/kd
  kdstream export runs/quickstart/kd --with-normalization --out student.onnx
  kdstream export runs/quickstart/kd --from last     # of a training that goes on or was interrupted
  kdstream export runs/birds --int8                  # also student.int8.onnx, with the accuracy of both
  kdstream export runs/birds --license apache-2.0 --hub me/birds --private
"""


SO_FAR = "so-far"
"""Folder within a training's, for what is exported before its end."""


def _parser() -> CommandParser:
    parser = command_parser("export", __doc__, EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="the folder of a training, with its student.json")
    parser.add_argument(
        "--from",
        dest="checkpoint",
        choices=("last", "best"),
        help="the weights so far of a training that goes on or was interrupted: of its last checkpoint, or of its best "
        "epoch; student.json and student.safetensors are written, too, to RUN/so-far",
    )
    parser.add_argument(
        "--with-normalization", action="store_true", help="the file takes images in [0,1] and standardises them itself"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX (default: the one torch writes by itself)")
    parser.add_argument("--size", type=int, metavar="N", help="images of N x N pixels (default: as trained)")
    parser.add_argument("--out", "--onnx", metavar="FILE", help="default: student.onnx beside student.json")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="also FILE.int8.onnx, calibrated on training images; both are measured on the validation split",
    )
    parser.add_argument("--data", metavar="SHARDS", help="the images for --int8 (default: where the recipe says)")
    parser.add_argument("--calibrate", type=int, metavar="N", help="images to calibrate --int8 with (default: 512)")
    parser.add_argument(
        "--license", metavar="ID", help="of the weights, for the model card: apache-2.0, cc-by-4.0, ..."
    )
    parser.add_argument(
        "--hub",
        metavar="USER/NAME",
        help="upload README.md, student.json, student.safetensors and the ONNX files to this model of the Hugging Face "
        "Hub (token: HF_TOKEN, or hf auth login)",
    )
    parser.add_argument("--private", action="store_true", help="with --hub: a new model is seen by you alone")
    parser.add_argument("--trust-code", action="store_true", help="run the code of a network of your own")
    return parser


@dataclass(frozen=True)
class Exported:
    """What was exported: where ``student.json`` stands, its content, and the ONNX file."""

    folder: Path
    about: About
    made: OnnxFile


def export(options: argparse.Namespace) -> Exported:
    """Load, export, check."""
    from kdstream.api.students import load_student
    from kdstream.models.export import save_student
    from kdstream.models.onnx_export import export_onnx

    place = Path(options.run)
    try:
        network = load_student(place, trust_code=options.trust_code, checkpoint=options.checkpoint)
    except UserError as error:
        raise UserError(str(error).replace("load_student(path, trust_code=True)", "add --trust-code")) from error
    about = about_of(network)
    size = options.size if options.size is not None else about.get("image_size")
    if size is None:
        raise UserError(f"{place} does not say what size of images it takes: give --size N, as in --size 32")
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise UserError(f"--size {options.size}: it is a number of pixels, 1 or more")
    folder = place / SO_FAR if options.checkpoint else place if place.is_dir() else place.parent
    out = Path(options.out) if options.out else folder / "student.onnx"
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file, as {out}/student.onnx")
    if options.checkpoint:
        told: dict[str, Any] = {key: about.get(key) for key in ("classes", "mean", "std", "image_size", "extra")}
        save_student(folder, network, **told)
    made = export_onnx(
        network,
        out,
        (height, width),
        mean=about.get("mean"),
        std=about.get("std"),
        normalization=options.with_normalization,
        classes=about.get("classes"),
        opset=options.opset,
        metadata={"spec": about["spec"], "weights_sha256": about.get("weights_sha256")},
    )
    return Exported(folder, about, made)


def _run(options: argparse.Namespace) -> None:
    from kdstream.api import hub
    from kdstream.api.model_card import CARD, gather, write_card

    console, errors = (
        Console(highlight=False, markup=False, soft_wrap=True, stderr=stderr) for stderr in (False, True)
    )
    if options.hub is not None:
        hub.check_hub(options.hub)
    with errors.status("exporting") if errors.is_terminal else contextlib.nullcontext():
        done = export(options)
    made = done.made
    console.print(f"written: {visible(made.path)} ({made.size / 1e6:.2f} MB, opset {made.opset})")
    console.print(f"input images: {made.takes}")
    if made.difference is None:
        console.print("not checked: onnxruntime is not installed (pip install onnxruntime)")
    else:
        console.print(
            f"checked with onnxruntime: max |difference| from torch {made.difference:.2e}, largest logit "
            f"{made.largest:.3g}"
        )
    int8 = _int8(options, done, console, errors) if options.int8 else None
    facts = gather(done.folder, done.about, onnx=made, int8=int8, hub=options.hub, licence=options.license)
    written = write_card(done.folder, facts)
    console.print(
        f"model card: {visible(done.folder / CARD)}"
        if written
        else f"note: {visible(done.folder / CARD)} is not of kdstream export: left as it is"
    )
    if options.hub is not None:
        paths = [made.path, *([int8.path] if int8 else []), done.folder / "student.safetensors", done.folder / CARD]
        files = {path.name: path.read_bytes() for path in paths}
        shown = json.loads((done.folder / "student.json").read_bytes())
        files["student.json"] = (json.dumps(without_places(shown), indent=2, ensure_ascii=False) + "\n").encode()
        with errors.status(f"uploading to {options.hub}") if errors.is_terminal else contextlib.nullcontext():
            address = hub.upload(options.hub, files, "A student of kdstream", options.private)
        console.print(f"uploaded: {visible(address)} ({', '.join(sorted(files))})")


def _int8(options: argparse.Namespace, done: Exported, console: Console, errors: Console) -> Int8:
    """Quantize and measure; prints the table."""
    from kdstream.api.int8 import IMAGES, to_int8

    with progress_bars(errors) as progress:
        bars: dict[str, Any] = {}

        def advance(what: str, count: int, total: int) -> None:
            bar = bars[what] if what in bars else bars.setdefault(what, progress.add_task(what, total=total))
            progress.update(bar, completed=count)

        found = to_int8(
            done.made,
            done.about,
            data=options.data,
            images=IMAGES if options.calibrate is None else options.calibrate,
            normalization=options.with_normalization,
            advance=advance,
        )
    console.print(f"written: {visible(found.path)} ({found.size / 1e6:.2f} MB)")
    table = Table(box=SIMPLE)
    for column in ("", "float32", "int8", "int8 / float32"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    table.add_row("top-1, %", f"{found.float_top1:.2f}", f"{found.top1:.2f}", f"{found.top1 - found.float_top1:+.2f}")
    size = found.size / found.float_size
    table.add_row("size, MB", f"{found.float_size / 1e6:.2f}", f"{found.size / 1e6:.2f}", f"x {size:.2f}")
    table.add_row("time for an image", "", "", f"x {found.time_ratio:.2f}")
    console.print(table)
    console.print(
        f"{found.samples:,} images of {visible(found.split)}, the same class for {found.same:.1f} %; calibrated on "
        f"{found.images:,} training images; time: onnxruntime on this CPU"
    )
    return found


def without_places(description: Mapping[str, Any]) -> dict[str, Any]:
    """A ``student.json`` for others: where things lay on this disk is left out of the recipe in it."""
    shown = copy.deepcopy(dict(description))
    recipe = (shown.get("extra") or {}).get("recipe")
    if isinstance(recipe, dict):
        recipe.pop("out", None)
        assistants = recipe.get("assistants")
        networks = [recipe.get("teacher"), recipe.get("student"), *(assistants if isinstance(assistants, list) else [])]
        for group, key in ((recipe.get("data"), "path"), *((one, "weights") for one in networks)):
            if isinstance(group, dict) and isinstance(place := group.get(key), str):
                group[key] = place if is_url(place) or is_published(place) else Path(place).name
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments, "nothing written")
