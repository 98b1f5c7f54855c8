"""A teacher that was trained elsewhere, on the validation split: how often it is right, and whether that can be."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from kdstream.addresses import is_published
from kdstream.atomic import write_atomic
from kdstream.data.shards import ShardSet
from kdstream.display.progress import Display
from kdstream.models.published import comparable, difference, find
from kdstream.notes import architecture, spec_of
from kdstream.recipe import Recipe
from kdstream.stream.stream import Stream
from kdstream.training.chains import evaluation_chain
from kdstream.training.evaluate import evaluate
from kdstream.training.networks import Teacher

TEACHER_FILE = "teacher.json"
"""What was found, in the folder of the job."""
DEVIATIONS = 2.33
"""So many standard deviations above chance, an accuracy is no accident (one-sided, 1 %)."""
LEAST = 0.05
"""Of the way from chance to perfect: less is near chance, however many images show it."""
FEW = 5
"""So many images of a class say nothing of what its images are taken for."""


def check_teacher(
    teacher: Teacher, recipe: Recipe, val: ShardSet, folder: Path, accelerator: Accelerator, display: Display
) -> dict[str, Any]:
    """Evaluate a teacher once; the next time, what was found is read from the folder.

    All processes must call it together. Random states stay as they are.

    Args:
        teacher: a trained one.
        recipe: says how images of the validation split are prepared.
        val: that split.
        folder: of the job.
        accelerator: says where it runs, on how many processes.
        display: shows the progress.

    Returns:
        As the ``result.json`` of a training: name, model, params, top1, top5 (percent); and ``warning``, what makes one
        doubt that the teacher and the data fit (None: nothing). Of published weights also ``published``, their accuracy
        as published (percent; None: for another number of classes), and ``difference``, what to say where it is another
        here (None: nothing).
    """
    key = _key(teacher, recipe, val)
    # All processes do what the first of them found.
    (found,) = broadcast_object_list([_read(folder / TEACHER_FILE, key)])
    if found is not None:
        return {**found, **_as_published(teacher, found["top1"], val)}
    with torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []):
        measured, confusion = _measure(teacher, recipe, val, accelerator, display)
    name = teacher.settings.model or architecture(teacher.network)
    found = {
        "name": f"teacher {name}",
        "model": name,
        "params": sum(parameter.numel() for parameter in teacher.network.parameters()),
        "top1": measured["top1"],
        **({"top5": measured["top5"]} if val.num_classes > 5 else {}),
        "warning": doubts(confusion, val.classes, val.split),
    }
    if accelerator.is_main_process:
        write_atomic(folder / TEACHER_FILE, (json.dumps({"key": key, **found}, indent=2) + "\n").encode())
    return {**found, **_as_published(teacher, measured["top1"], val)}


def note_absence(folder: Path, weights: str, why: str) -> None:
    """Write down that published weights could not be had, so that this job goes on with the teacher that it trains."""
    write_atomic(folder / TEACHER_FILE, (json.dumps({"absent": {weights: why}}, indent=2) + "\n").encode())


def noted_absence(folder: Path, weights: str) -> str | None:
    """Why this job, when it began, trained its teacher instead of taking published weights; None: it did not."""
    try:
        return str(json.loads((folder / TEACHER_FILE).read_text(encoding="utf-8"))["absent"][weights])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _as_published(teacher: Teacher, top1: float, val: ShardSet) -> dict[str, Any]:
    """What compares it with what was published of it; nothing for other weights."""
    weights = teacher.settings.weights
    if not is_published(weights):
        return {}
    wanted = find(str(weights))
    return {
        "published": comparable(wanted, val.num_classes),
        "difference": difference(wanted, top1, val.split, val.num_classes),
    }


def _key(teacher: Teacher, recipe: Recipe, val: ShardSet) -> str:
    """Names all that decides the numbers."""
    images = [val.fingerprint, val.mean, val.std, recipe.stream, recipe.eval_stream, recipe.precision]
    deciding = [teacher.hash, spec_of(teacher.network), teacher.mean, teacher.std, val.num_classes, *images]
    return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()[:16]


def _read(path: Path, key: str) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found.pop("key") == key else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _measure(
    teacher: Teacher, recipe: Recipe, val: ShardSet, accelerator: Accelerator, display: Display
) -> tuple[dict[str, float], Tensor]:
    """What :func:`kdstream.training.evaluate.evaluate` gives, and the confusion matrix, int64 [C,C] on the CPU."""
    device = accelerator.device
    several = accelerator.num_processes > 1

    def reduce(values: Tensor) -> Tensor:
        return accelerator.reduce(values) if several else values

    given = {"mean": teacher.mean or val.mean, "std": teacher.std or val.std}
    place: dict[str, Any] = {"rank": accelerator.process_index, "world": accelerator.num_processes, "device": device}
    place |= {"workers": recipe.workers, "cache": recipe.cache}
    stream = Stream(val, recipe.eval_batch_size, train=False, given=given, **place)
    stream = stream | evaluation_chain(recipe)
    stream.open()
    network = teacher.network.to(device)
    classes = int(spec_of(network)["num_classes"])
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    name = f"evaluation of the teacher {architecture(network)}"
    with display.task(name, stream.plan.size) as task, accelerator.autocast():
        measured = evaluate(network, stream, reduce, task.advance, confusion)
    network.cpu()
    return measured, reduce(confusion).cpu()


def doubts(confusion: Tensor, classes: Sequence[str], split: str) -> str | None:
    """What makes one doubt that a teacher answers for the data's classes; None: nothing.

    Two signs: it is hardly more often right than answers would be that have nothing to do with the images (given how
    often it answers what, as in Cohen's kappa); and classes of which it takes most images for another, in a circle, as
    if their names were exchanged.

    Args:
        confusion: int64 [C,C], samples by class (row) and answer (column).
        classes: C names.
        split: what the samples are, for the message.
    """
    counts = confusion.double()
    total = float(counts.sum())
    if not total:
        return None
    right = float(counts.diagonal().sum()) / total
    chance = float(counts.sum(1) @ counts.sum(0)) / total**2
    limit = chance + max(DEVIATIONS * math.sqrt(chance * (1 - chance) / total), LEAST * (1 - chance))
    circle = _exchanged(confusion)
    example = ", ".join(f"{classes[a]!r} for {classes[b]!r}" for a, b in list(circle.items())[:3])
    if right < 1 and right <= limit:
        seems = f" (it takes {example})" if circle else ""
        return (
            f"it gets {100 * right:.1f} % on the {split} split, near chance ({100 * chance:.1f} %){seems}: wrong "
            "classes (teacher.classes), normalisation (teacher.mean, teacher.std) or weights?"
        )
    if circle:
        return (
            f"it gets {100 * right:.1f} % on the {split} split, but takes most images of {len(circle)} classes for one "
            f"another ({example}): are its classes in another order? (teacher.classes)"
        )
    return None


def _exchanged(confusion: Tensor) -> dict[int, int]:
    """Classes -> what most of their images are taken for, where that leads round in a circle."""
    rows = confusion.sum(1)
    most, answer = confusion.max(1)
    moved = {
        number: int(answer[number])
        for number in range(len(confusion))
        if rows[number] >= FEW and 2 * most[number] > rows[number] and answer[number] != number
    }
    while open_ends := [a for a, b in moved.items() if b not in moved or a not in moved.values()]:
        for number in open_ends:
            del moved[number]
    return moved
