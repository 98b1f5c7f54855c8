"""``kdstream bench``: parts of kdstream against what people use instead, measured in one run, as ratios.

A bench is a function of a file in ``kdstream/benches``, under the decorator ``bench``; its name is the subcommand. It
measures, prints its table and returns what ``--json`` writes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kdstream.atomic import write_atomic
from kdstream.cli.frame import CommandParser, find_own_modules, run_command
from kdstream.errors import UserError

NAMES = {
    "jpeg": "the JPEG round trip beside Pillow, simplejpeg, torchvision and kornia",
    "coded": "a training step with the coded teacher, online and with a plan, beside plain KD",
    "taps": "forward and backward passes with all taps beside none",
    "plan": "plan and index of sets of up to a billion samples: time and memory",
    "stream": "augmented batches from image files, beside torchvision, webdataset, litdata, streaming, spdl and DALI",
    "step": "a training step of every objective beside a KD loop written by hand",
    "gpu": "the data path, the JPEG kernel and training steps on an accelerator",
}
"""The benches: name, which is also that of the file, and what each compares."""


def _parser(asked: str | None) -> CommandParser:
    """The command line; the options of the bench that is asked for stand in its file, which loads torch."""
    parser = CommandParser(prog="kdstream bench", description=(__doc__ or "").splitlines()[0].partition(": ")[2])
    subparsers = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
    for name, about in NAMES.items():
        sub = subparsers.add_parser(name, help=about, description=about)
        if name != asked:
            continue
        importlib.import_module(f"kdstream.benches.{name}")  # enters itself in BENCHES
        from kdstream.benches.measure import BENCHES, budget, whole

        for flag, settings in BENCHES[name][1].items():
            sub.add_argument(flag, **settings)
        sub.add_argument(
            "--seconds",
            type=budget,
            default=20,
            metavar="S",
            help="budget of a case (default: 20; 3 rounds always run)",
        )
        sub.add_argument("--threads", type=whole, default=1, metavar="N", help="of kdstream and torch (default: 1)")
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    return parser


def _check_writable(path: Path) -> None:
    """Before minutes of measuring, not after."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--json {path}: it cannot be written; name a file in a folder that exists and is yours")


def _run(options: argparse.Namespace) -> None:
    import torch

    from kdstream.benches.measure import BENCHES, machine

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # a table in a file or pipe must not be cut at 80 columns
    if options.json is not None:
        _check_writable(options.json)
    function, _ = BENCHES[options.bench]
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        where = machine(options.threads)
        console.print(f"{where['cpu']}, {options.threads} thread(s), torch {where['torch']}")
        found = function(options, console)
    finally:
        torch.set_num_threads(threads)
    if options.json is not None:
        data = {"bench": options.bench, "machine": where, "seconds": options.seconds, **found}
        write_atomic(options.json, (json.dumps(data, indent=1) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    find_own_modules()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _parser(next((a for a in arguments if not a.startswith("-")), None)), _run, arguments)
