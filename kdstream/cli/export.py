"""``kdstream export``: a trained student becomes one ONNX file, checked against torch where onnxruntime is there."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kdstream.cli.frame import CommandParser, command_parser, find_own_modules, run_command
from kdstream.errors import UserError
from kdstream.notes import about_of
from kdstream.terminal import visible

if TYPE_CHECKING:
    from kdstream.models.onnx_export import OnnxFile

EXAMPLES = """examples:
  kdstream export runs/quickstart/kd
  kdstream export runs/quickstart/kd --with-normalization --out student.onnx
  kdstream export runs/quickstart/kd --from last     # of a training that goes on or was interrupted
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
    parser.add_argument("--out", metavar="FILE", help="default: student.onnx beside student.json")
    parser.add_argument("--trust-code", action="store_true", help="run the code of a network of your own")
    return parser


def export(options: argparse.Namespace) -> OnnxFile:
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
        out.parent.mkdir(parents=True, exist_ok=True)
        told: dict[str, Any] = {key: about.get(key) for key in ("classes", "mean", "std", "image_size", "extra")}
        save_student(out.parent, network, **told)
    return export_onnx(
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


def _run(options: argparse.Namespace) -> None:
    console, errors = (
        Console(highlight=False, markup=False, soft_wrap=True, stderr=stderr) for stderr in (False, True)
    )
    with errors.status("exporting") if errors.is_terminal else contextlib.nullcontext():
        made = export(options)
    console.print(f"written: {visible(made.path)} ({made.size / 1e6:.2f} MB, opset {made.opset})")
    console.print(f"input images: {made.takes}")
    if made.difference is None:
        console.print("not checked: onnxruntime is not installed (pip install onnxruntime)")
    else:
        console.print(
            f"checked with onnxruntime: max |difference| from torch {made.difference:.2e}, largest logit "
            f"{made.largest:.3g}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    return run_command(_parser, _run, arguments, "nothing written")
