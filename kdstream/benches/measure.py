"""What every bench shares: alternating rounds, ratios of times, tables, options."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

LEAST_ROUNDS, MOST_ROUNDS = 3, 50


class Ratio(NamedTuple):
    """A ratio of two times, over the rounds in which both were measured."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        digits = 1 if self.median >= 10 else 2
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def alternate(works: Mapping[str, Callable[[], object]], seconds: float) -> list[dict[str, float]]:
    """Times of several pieces of work, one after the other in every round, so that all meet the same machine.

    Args:
        works: name -> what is measured. Every second round runs them in reverse.
        seconds: no round starts later than this, but there are at least 3 rounds; and at most 50.

    Returns:
        For each round the seconds of each piece of work.
    """
    rounds: list[dict[str, float]] = []
    start = time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() - start < seconds):
        order = list(works) if len(rounds) % 2 == 0 else [*works][::-1]
        times = {}
        for name in order:
            begin = time.perf_counter()
            works[name]()
            times[name] = time.perf_counter() - begin
        rounds.append(times)
    return rounds


def ratio(rounds: Sequence[Mapping[str, float]], above: Sequence[str], below: Sequence[str]) -> Ratio:
    """The time of ``above`` over the time of ``below`` (sums of pieces of work): each round's, then their median."""
    found = [sum(times[name] for name in above) / sum(times[name] for name in below) for times in rounds]
    return Ratio(statistics.median(found), min(found), max(found), len(found))


def milliseconds(rounds: Sequence[Mapping[str, float]], *names: str) -> float:
    """Median over the rounds of the time of ``names`` together."""
    return 1e3 * statistics.median(sum(times[name] for name in names) for times in rounds)


def cpu_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def new_table(title: str, *columns: str) -> Table:
    """An empty table with these columns, numbers to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in columns:
        text = name in ("work", "peer", "compared")
        table.add_column(name, justify="left" if text else "right", no_wrap=not text)
    return table


def machine(threads: int) -> dict[str, Any]:
    """What the times depend on, for the record."""
    return {
        "cpu": cpu_name(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


Bench = Callable[[argparse.Namespace, Console], dict[str, Any]]
BENCHES: dict[str, tuple[Bench, dict[str, dict[str, Any]]]] = {}
"""Name -> (function, its options: flag -> argparse's keywords)."""


def bench(options: dict[str, dict[str, Any]]) -> Callable[[Bench], Bench]:
    """Decorator: the function becomes the subcommand of its name, its docstring's first line the help."""

    def register(function: Bench) -> Bench:
        BENCHES[function.__name__] = (function, options)
        return function

    return register


def whole(text: str) -> int:
    """A whole number of at least 1, from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def step(text: str) -> int:
    """A step between qualities, from the command line."""
    if whole(text) > 100:
        raise argparse.ArgumentTypeError(f"{text!r}: the step between qualities is 1 to 100")
    return int(text)


def budget(text: str) -> float:
    """Seconds, from the command line."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


SUBSAMPLING = {"choices": ("4:4:4", "4:2:0"), "default": "4:4:4", "help": "of the chroma (default: 4:4:4)"}
