"""Command line: a trained student becomes one ONNX file, checked against torch where onnxruntime is installed."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a clone, without installation

if __name__ == "__main__":
    from kdstream.cli.frame import quiet_imports

    quiet_imports()

from rich.console import Console

from kdstream.cli.frame import CommandParser, imported
from kdstream.errors import UserError
from kdstream.models.export import load_student
from kdstream.models.onnx_export import OnnxFile, export_onnx
from kdstream.terminal import say_error, visible

EXAMPLES = """examples:
  python tools/export_onnx.py runs/quickstart/kd
  python tools/export_onnx.py runs/quickstart/kd --with-normalization --out student.onnx
"""


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="the folder of a training, with its student.json")
    parser.add_argument(
        "--with-normalization", action="store_true", help="the file takes images in [0,1] and standardises them itself"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="of ONNX (default: the one torch writes by itself)")
    parser.add_argument("--size", type=int, metavar="N", help="images of N x N pixels (default: as trained)")
    parser.add_argument("--out", metavar="FILE", help="default: student.onnx beside student.json")
    parser.add_argument("--trust-code", action="store_true", help="run the code of a network of your own")
    return parser


def run(options: argparse.Namespace) -> OnnxFile:
    """Load, export, check."""
    place = Path(options.run)
    try:
        network = load_student(place, trust_code=options.trust_code)
    except UserError as error:
        raise UserError(str(error).replace("load_student(path, trust_code=True)", "add --trust-code")) from error
    about = network.about
    size = options.size if options.size is not None else about.get("image_size")
    if size is None:
        raise UserError(f"{place} does not say what size of images it takes: give --size N, as in --size 32")
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise UserError(f"--size {options.size}: it is a number of pixels, 1 or more")
    out = Path(options.out) if options.out else (place if place.is_dir() else place.parent) / "student.onnx"
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file, as {out}/student.onnx")
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    console, errors = (
        Console(highlight=False, markup=False, soft_wrap=True, stderr=stderr) for stderr in (False, True)
    )
    try:
        options = _parser().parse_args(arguments)
        with errors.status("exporting") if errors.is_terminal else contextlib.nullcontext():
            made = run(options)
    except UserError as error:
        say_error(f"export_onnx: {error}")
        return 2
    except KeyboardInterrupt:
        say_error("export_onnx: interrupted, nothing written")
        return 130
    console.print(f"written: {visible(made.path)} ({made.size / 1e6:.2f} MB, opset {made.opset})")
    console.print(f"input images: {made.takes}")
    if made.difference is None:
        console.print("not checked: onnxruntime is not installed (pip install onnxruntime)")
    else:
        console.print(
            f"checked with onnxruntime: max |difference| from torch {made.difference:.2e}, largest logit "
            f"{made.largest:.3g}"
        )
    return 0


if __name__ == "__main__":
    imported()
    sys.path.insert(1, os.getcwd())  # networks by dotted path may be the user's own
    sys.exit(main())
