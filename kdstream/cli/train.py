"""``kdstream train``: distil a student as a recipe says."""

from __future__ import annotations

import os
import re
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdstream.atomic import advice, reason
from kdstream.cli.frame import CommandParser, find_own_modules
from kdstream.errors import UserError
from kdstream.terminal import say_error

if TYPE_CHECKING:
    from kdstream.recipe import Recipe


def parse_arguments(arguments: Sequence[str] | None = None) -> Namespace:
    """The command line.

    Raises:
        UserError: options that there are none of.
    """
    parser = CommandParser(
        prog="kdstream train", description="Distil a student. Without arguments: the quickstart on handwritten digits."
    )
    parser.add_argument(
        "recipe", nargs="?", default="quickstart", help="YAML file, or a built-in recipe's or table's name"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--fresh", action="store_true", help="delete what an earlier run left in the output folder")
    parser.add_argument("--only-teacher", action="store_true", help="train the recipe's teacher and stop there")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    chosen = parser.parse_intermixed_args(arguments)
    if "=" in chosen.recipe and not _is_file(chosen.recipe):
        chosen.recipe, chosen.overrides = "quickstart", [chosen.recipe, *chosen.overrides]
    return chosen


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null byte
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a recipe; returns the exit code: 0 done, 1 another process is gone, 2 bad input or a disk that fails, 128 +
    signal number when stopped by one."""
    from kdstream.training.stop import Stopped, interruptible

    rank = os.environ.get("RANK", "0")
    place = "error" if rank == "0" else f"error in process {rank}"
    find_own_modules()
    try:
        with interruptible():
            chosen = parse_arguments(arguments)
            # The command line is read: now what takes long to load.
            from kdstream.display.progress import Display
            from kdstream.training.accelerator import make_accelerator
            from kdstream.training.job import Job

            recipe, of_teacher = _wanted(chosen.recipe, chosen.overrides)
            accelerator = make_accelerator(chosen.cpu, recipe.precision)
            with Display(enabled=accelerator.is_main_process) as display:
                job = Job(recipe, accelerator, display, chosen.fresh)
                job.run_teacher() if chosen.only_teacher or of_teacher else job.run()
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
        # Without gloo's file, and its advice.
        why = re.sub(r"^\[[^]]*\] | This is typically .*", "", " ".join(str(error).split()))
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


def _wanted(name: str, overrides: Sequence[str]) -> tuple[Recipe, bool]:
    """The recipe of that name, or the one cell of a table that the overrides pick; whether its teacher is meant.

    Raises:
        UserError: see :func:`kdstream.recipe_file.load_recipe` and :func:`kdstream.training.tables.cells.pick`.
    """
    from kdstream.recipe_file import find_recipe, is_table, load_recipe, read_recipe

    if not is_table(read_recipe(find_recipe(name))):
        return load_recipe(name, overrides), False
    from kdstream.training.tables.cells import pick
    from kdstream.training.tables.table import load_table

    cell, recipe = pick(load_table(name), overrides)
    return recipe, cell.of_teacher


def lost(error: RuntimeError) -> bool:
    """Whether an error says that another process of this training is gone."""
    import torch.distributed

    words = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "gloo")
    return isinstance(error, torch.distributed.DistError) or any(word in str(error).lower() for word in words)


def leave(code: int) -> None:
    """End the process that a launcher may have started.

    What standard output could not take any more is given up in silence. ``accelerate launch`` would answer an exit
    code with a traceback of its own, below the line that says what is wrong: it is ended first (its code is then 143).
    """
    from kdstream.training.stop import single_launcher

    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if code and (launcher := single_launcher()) is not None:
        os.kill(launcher, signal.SIGTERM)
    sys.exit(code)
