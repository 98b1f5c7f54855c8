"""The entry: ``accelerate launch kdstream/train.py [RECIPE] [key=value ...]``: parse a recipe, build, fit, report."""

import os
import sys

if __name__ == "__main__":
    # Run as a script, Python puts this folder first, where types.py would hide the standard library's. The clone's
    # root takes its place, and the working folder follows, so that recipes find the user's own modules.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path.insert(1, os.getcwd())

import argparse
from pathlib import Path

from kdstream.command import CommandParser
from kdstream.errors import UserError
from kdstream.recipe import is_file, load_recipe
from kdstream.training.accelerator import make_accelerator
from kdstream.training.job import Job
from kdstream.training.progress import Display
from kdstream.training.stop import Stopped


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: options that there are none of.
    """
    parser = CommandParser(
        prog="train.py", description="Distil a student. Without arguments: the quickstart on handwritten digits."
    )
    parser.add_argument("recipe", nargs="?", default="quickstart", help="YAML file or the name of a built-in recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--fresh", action="store_true", help="delete what an earlier run left in the output folder")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    chosen = parser.parse_intermixed_args(arguments)
    if "=" in chosen.recipe and not is_file(Path(chosen.recipe)):
        chosen.recipe, chosen.overrides = "quickstart", [chosen.recipe, *chosen.overrides]
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Run a recipe; returns the exit code: 0 done, 2 bad input, 128 + signal number when stopped by one."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        chosen = parse_arguments(arguments)
        recipe = load_recipe(chosen.recipe, chosen.overrides)
        accelerator = make_accelerator(chosen.cpu, recipe.precision)
        with Display(enabled=accelerator.is_main_process) as display:
            Job(recipe, accelerator, display, chosen.fresh).run()
        accelerator.end_training()
    except UserError as error:
        line = " ".join(str(error).splitlines())
        print(f"error: {line}" if rank == 0 else f"error in process {rank}: {line}", file=sys.stderr, flush=True)
        return 2
    except Stopped as stopped:
        if rank == 0:
            print(f"stopped: {stopped}; the same command continues", file=sys.stderr, flush=True)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr, flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
