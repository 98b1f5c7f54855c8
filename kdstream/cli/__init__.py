"""The command ``kdstream``: one small file a verb; none of them loads torch to say how it is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from kdstream import __version__
from kdstream.registry import nearest
from kdstream.terminal import say_error

VERBS = {
    "train": "distil a student as a recipe says",
    "runs": "what lies in runs/: finished or not, accuracy, how to go on",
    "compare": "which method serves your images best, and whether that is chance",
    "tables": "the papers' tables and figures, and what of them is done",
    "table": "train what is missing of a paper's table",
    "report": "a paper's table with ours beside it",
    "claims": "do the papers' claims hold? trainings that decide them",
    "shards": "make a data set of images, or check one",
    "evaluate": "accuracy, calibration and confusions of a network",
    "predict": "what a network sees in pictures of yours",
    "peakiness": "how sure a teacher is, for original and coded images",
    "analyse": "what the papers' figures show, of your networks",
    "export": "a student as one ONNX file, from a running training, too",
    "bench": "speed beside what people use instead",
    "recipes": "the recipes that come with kdstream, and their schema",
    "explain": "a stage, an objective, a selector or a setting, by its name",
    "models": "networks: parameters, multiply-adds, taps",
    "objectives": "objectives: papers, formulas, settings, presets",
    "completion": "a shell's completion of this command",
}
"""Verb -> what it does; each is a module of this package, with a function ``main``."""


def usage() -> str:
    """What ``kdstream --help`` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join(["usage: kdstream VERB ...", "", *lines, "", "kdstream VERB --help says more."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns its exit code."""
    verb, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(usage())
        return 0
    if verb in ("-V", "--version"):
        print(f"kdstream {__version__}")
        return 0
    if verb not in VERBS:
        say_error(f"error: unknown verb {verb!r}: {nearest(verb, VERBS)}")
        return 2
    return importlib.import_module(f"kdstream.cli.{verb}").main(rest)
