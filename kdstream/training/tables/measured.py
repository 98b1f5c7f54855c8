"""Measured: what a finished training tells beyond its accuracy, from its result or by a pass that is kept beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdstream.analysis.accuracy import accuracy
from kdstream.analysis.one_pass import one_pass
from kdstream.atomic import write_atomic, writing
from kdstream.data.altered import as_asked
from kdstream.data.shards import ShardSet, has_split, open_shards
from kdstream.exact import exact
from kdstream.models.pretrained import load_teacher
from kdstream.recipe import Recipe
from kdstream.stream.normalize import normalize
from kdstream.training.folder import ANSWERS, RESULT
from kdstream.training.tables.finished import Done

UNITS = {
    "top1": "points",
    "teacher_entropy": "nat",
    "truth_probability": "",
    "student_entropy": "nat",
    "calibration_error": "points",
}
"""What can be measured of a training, and in which unit: top-1 after the last epoch; entropy of the teacher's answers
and the probability that they give the label, over the views of the last epoch; entropy of the student's answers for
its training images as they are; its expected calibration error on the validation split."""


def value_of(measure: str, recipe: Recipe, done: Done) -> float | None:
    """What a finished training has of a measure.

    Args:
        measure: one of :data:`UNITS`.
        recipe: of the training.
        done: where it is.

    Returns:
        None where it has none: a training without a teacher has no teacher's entropy.

    Raises:
        UserError: the student or its images, which a pass needs, cannot be read.
    """
    if measure in ("top1", "top5"):
        return done.last.get(measure)
    if measure in _OF_TEACHER:
        mean = _json(done.folder / RESULT).get("teacher", {}).get(_OF_TEACHER[measure])
        return float(mean[0]) if mean else None
    kept = _json(done.folder / ANSWERS)
    if measure not in kept:
        kept |= {measure: _PASSES[measure](recipe, done.folder)}
        with writing(done.folder):
            write_atomic(done.folder / ANSWERS, (json.dumps(kept, indent=2) + "\n").encode())
    return float(kept[measure])


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _split(recipe: Recipe, name: str) -> ShardSet:
    shards = open_shards(Path(recipe.data.path) / name)
    if recipe.data.num_classes is not None:
        shards.number_classes(recipe.data.num_classes)
    shards.mean, shards.std = recipe.data.mean or shards.mean, recipe.data.std or shards.std
    return shards


@torch.no_grad()
def _entropy(recipe: Recipe, folder: Path) -> float:
    """Mean of H(q) = -sum_c q_c ln q_c, nats, over the student's training images."""
    network = load_teacher(folder)
    shards = as_asked(_split(recipe, recipe.data.train), recipe.data)
    total = 0.0
    for batch in one_pass(shards, normalize(mean=tuple(shards.mean), std=tuple(shards.std))):
        log_q = torch.log_softmax(exact(network(batch.image)), dim=1)
        total -= float((log_q.exp() * log_q).sum())
    return total / len(shards)


def _calibration(recipe: Recipe, folder: Path) -> float:
    """Percent; see :attr:`kdstream.analysis.accuracy.Accuracy.calibration_error`."""
    val = recipe.data.val or ("val" if has_split(Path(recipe.data.path), "val") else "test")
    shards = _split(recipe, val)
    return accuracy(load_teacher(folder), shards, shards.mean, shards.std).calibration_error


NAMES = {
    "top1": "top-1",
    "teacher_entropy": "entropy of the teacher's answers",
    "truth_probability": "the teacher's probability for the label",
    "student_entropy": "entropy of the student's answers",
    "calibration_error": "calibration error",
}
"""The measures for people."""
_OF_TEACHER = {"teacher_entropy": "entropy", "truth_probability": "gt_probability"}
_PASSES: dict[str, Callable[[Recipe, Path], float]] = {"student_entropy": _entropy, "calibration_error": _calibration}
