"""Timing: how long an epoch of a training takes, from a few of its steps, with untrained networks."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from kdstream.addresses import is_url
from kdstream.data.shards import has_split
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.recipe import Recipe
from kdstream.stream.language import Call, parse_calls
from kdstream.training.accelerator import settle
from kdstream.training.job import Job, teacher_recipe
from kdstream.training.networks import make_teacher
from kdstream.training.rehearsal import rehearse
from kdstream.training.setup import set_up

STEPS, WARMUP = 50, 5
LONGEST = 10.0
"""Seconds after which warm-up, and then the measuring, end with the step in hand: on a CPU a step may take seconds."""


def data_is_there(recipe: Recipe) -> bool:
    """Whether a recipe's shards can be read without making them first."""
    path = recipe.data.path
    try:
        return (is_url(path) or Path(path).is_dir()) and has_split(path, recipe.data.train)
    except (OSError, UserError):
        return False


def seconds_per_epoch(recipe: Recipe, accelerator: Accelerator, steps: int = STEPS) -> float:
    """Of the main phase, without evaluation; the teacher is untrained where it is not given. Nothing is written.

    Raises:
        UserError: what the training itself would say.
    """
    recipe = settle(recipe.model_copy(update={"stream": _planless(recipe.stream)}), accelerator)
    display = Display(enabled=False)
    train, val = Job(recipe, accelerator, display).data()
    teacher = None
    if recipe.teacher is not None:
        teaching = teacher_recipe(recipe)
        if teaching is None:
            teacher = make_teacher(recipe.teacher, train.num_classes, train.classes, train)
        else:
            teacher = rehearse(settle(teaching, accelerator), train, None, accelerator, val)
    setup = set_up(recipe, train, val, teacher, accelerator)
    stage = setup.distiller.stages()[-1]
    parameters = setup.begin(stage)
    setup.loss.begin_epoch(0, recipe.epochs)
    optimizer = torch.optim.SGD(parameters, 1e-6)
    module = setup.distiller.train()
    batches = itertools.chain.from_iterable(setup.stream for _ in itertools.count())

    def seconds_per_step(most: int) -> float:
        _wait(accelerator)
        done, started = 0, time.perf_counter()
        while done < most and time.perf_counter() - started < LONGEST:
            with accelerator.autocast():
                loss, _, _ = module(next(batches))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
        _wait(accelerator)
        return (time.perf_counter() - started) / done

    seconds_per_step(WARMUP)
    return seconds_per_step(steps) * setup.stream.steps


def _wait(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()


def _planless(stream: str) -> str:
    """The chain without stages whose work is done before the training: with a plan, a teacher passes once."""
    return " | ".join(str(call) for call in parse_calls(stream) if not _planned(call))


def _planned(call: Call) -> bool:
    return call.name == "coded" and call.settings.get("plan") is not None
