"""The entry: ``accelerate launch kdstream/train.py [RECIPE] [key=value ...]``: parse a recipe, build, fit, report."""

import os
import sys

if __name__ == "__main__":
    # Run as a script, Python puts this folder first, where types.py would hide the standard library's. The clone's
    # root takes its place, and the working folder follows, so that recipes find the user's own modules.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path.insert(1, os.getcwd())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Before torch is imported: its C++ code advises every process against find_unused_parameters, which stays.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from kdstream.cli.frame import quiet_imports
    from kdstream.training.stop import end_with_launcher

    quiet_imports()
    end_with_launcher()

import argparse
import re
import signal
from pathlib import Path
from typing import NoReturn

import torch.distributed

from kdstream.atomic import advice, reason
from kdstream.cli.frame import CommandParser, imported
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.recipe import is_file, load_recipe
from kdstream.terminal import say_error
from kdstream.training.accelerator import make_accelerator
from kdstream.training.job import Job
from kdstream.training.stop import Stopped, interruptible


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


def lost(error: RuntimeError) -> bool:
    """Whether an error says that another process of this training is gone."""
    words = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "gloo")
    return isinstance(error, torch.distributed.DistError) or any(word in str(error).lower() for word in words)


def main(arguments: list[str] | None = None) -> int:
    """Run a recipe; returns the exit code: 0 done, 1 another process is gone, 2 bad input or a disk that fails, 128 +
    signal number when stopped by one."""
    rank = os.environ.get("RANK", "0")
    place = "error" if rank == "0" else f"error in process {rank}"
    try:
        with interruptible():
            chosen = parse_arguments(arguments)
            recipe = load_recipe(chosen.recipe, chosen.overrides)
            accelerator = make_accelerator(chosen.cpu, recipe.precision)
            with Display(enabled=accelerator.is_main_process) as display:
                Job(recipe, accelerator, display, chosen.fresh).run()
            accelerator.end_training()
    except UserError as error:
        say_error(f"{place}: {error}")
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        say_error(f"{place}: {where}{reason(error)}; {advice(error)}")
        return 2
    except RuntimeError as error:
        if not lost(error):
            raise
        why = re.sub(
            r"^\[[^]]*\] | This is typically .*", "", " ".join(str(error).split())
        )  # gloo's file, and its advice
        say_error(f"{place}: another process of this training has ended ({why}); the same command continues")
        return 1
    except Stopped as stopped:
        if rank == "0":
            say_error(f"stopped: {stopped}; the same command continues")
        return 128 + stopped.signal
    except KeyboardInterrupt as interrupt:
        say_error("interrupted; the same command continues")
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    return 0


def leave(code: int) -> NoReturn:
    """End the process; what standard output could not take any more is given up in silence."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    imported()
    leave(main())
