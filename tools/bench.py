"""Command line: measure parts of kdstream against what people use instead, in one run, and print the ratios.

A bench is a function of a file in ``benches``, under the decorator ``bench``; its name is the subcommand. It measures,
prints its table and returns what ``--json`` writes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a clone, without installation
sys.path.insert(0, str(Path(__file__).resolve().parent))

if __name__ == "__main__":
    from kdstream.cli.frame import quiet_imports

    quiet_imports()

import torch
from benches.measure import BENCHES, budget, machine, whole
from rich.console import Console

from kdstream.atomic import write_atomic
from kdstream.cli.frame import CommandParser, imported
from kdstream.errors import UserError
from kdstream.terminal import say_error

for name in ("jpeg", "coded", "taps", "step"):
    importlib.import_module(f"benches.{name}")  # enters itself in BENCHES


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--seconds", type=budget, default=20, metavar="S", help="budget of a case (default: 20; 3 rounds always run)"
    )
    common.add_argument("--threads", type=whole, default=1, metavar="N", help="of kdstream and torch (default: 1)")
    common.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    parser = CommandParser(description=(__doc__ or "").splitlines()[0])
    subparsers = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
    for name, (function, options) in BENCHES.items():
        about = (function.__doc__ or "").splitlines()[0]
        sub = subparsers.add_parser(name, help=about, description=about, parents=[common])
        for flag, settings in options.items():
            sub.add_argument(flag, **settings)
    return parser


def _check_writable(path: Path) -> None:
    """Before minutes of measuring, not after."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--json {path}: it cannot be written; name a file in a folder that exists and is yours")


def _run(arguments: Sequence[str] | None, console: Console) -> None:
    options = _parser().parse_args(arguments)
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
    """Run the command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # a table in a file or pipe must not be cut at 80 columns
    try:
        _run(arguments, console)
    except UserError as error:
        say_error(f"bench: {error}")
        return 2
    except KeyboardInterrupt:
        say_error("bench: interrupted")
        return 130
    return 0


if __name__ == "__main__":
    imported()
    sys.exit(main())
