"""Rehearsal: what cannot work in a run is found in a second, and not after its teacher has been trained for hours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from kdstream import recipe as settings
from kdstream.batch import Batch
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.notes import spec_of
from kdstream.recipe import Recipe
from kdstream.stream.stream import Stream
from kdstream.training.accelerator import settle
from kdstream.training.chains import evaluation_chain
from kdstream.training.distiller import Distiller
from kdstream.training.evaluate import batch_sums, validation_batches
from kdstream.training.networks import Teacher
from kdstream.training.optimizer import make_optimizer
from kdstream.training.setup import memory_format, set_up


def rehearse(
    recipe: Recipe, train: ShardSet, teacher: Teacher | None, accelerator: Accelerator, val: ShardSet | None = None
) -> Teacher | None:
    """Everything that comes before the first step of a training, with two images, and the first look at the validation
    set; in the training's memory format and precision. Nothing is written.

    All processes must call it together: some terms exchange something in every forward pass. Global random states are
    left as they were, so that the training gives the same weights as without it.

    Args:
        recipe: of the training.
        train: its images.
        teacher: a trained one, or one that a rehearsal gave; None where no term looks at it.
        accelerator: says where the networks run.
        val: what the training evaluates on; None = it is not tried.

    Returns:
        The network that the training would export, untrained, as the teacher in the rehearsal of the next one. None
        where the training decides which of different networks that is.

    Raises:
        UserError: what the training itself would say.
    """
    device = accelerator.device
    recipe = settle(recipe, accelerator)

    def attempt(layout: torch.memory_format) -> Teacher | None:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return _rehearse(recipe, train, teacher, accelerator, val, layout)

    layout = memory_format(recipe, device)
    try:
        return attempt(layout)
    except UserError as error:
        raise UserError(f"recipe {recipe.name}: {error}") from error
    except RuntimeError as error:
        if layout == torch.contiguous_format or not _works(attempt):
            raise
        reason = " ".join(str(error).split())
        default = "" if recipe.channels_last else ", the default on GPUs"
        raise UserError(
            f"recipe {recipe.name}: a network does not work in the memory format channels_last{default} ({reason}): "
            "set channels_last=false"
        ) from error


def _works(attempt: Callable[[torch.memory_format], Any]) -> bool:
    """Whether the memory format alone was at fault."""
    try:
        attempt(torch.contiguous_format)
    except (UserError, RuntimeError):
        return False
    return True


def _rehearse(
    recipe: Recipe,
    train: ShardSet,
    teacher: Teacher | None,
    accelerator: Accelerator,
    val: ShardSet | None,
    layout: torch.memory_format,
) -> Teacher | None:
    setup = set_up(recipe, train, val or train, teacher, accelerator, rehearsal=True, layout=layout)
    for stage in setup.distiller.stages():
        with accelerator.autocast():
            if setup.begin(stage):
                make_optimizer(recipe.optimizer, setup.distiller, recipe.optimizer.lr)
            if stage.trains == "student" and setup.smallest_slice == 1:
                _try_one(setup.distiller, setup.probe)
    network = setup.networks["student"]
    if val is not None:
        _try_evaluation(recipe, val, accelerator, list(setup.networks.values()))
    if recipe.export_network == "best" and any(spec_of(peer) != spec_of(network) for peer in setup.networks.values()):
        return None
    exported = settings.Teacher(taps=recipe.student.taps)
    return Teacher(network.requires_grad_(False).eval().cpu(), exported, None, None, hash="")


def _try_evaluation(recipe: Recipe, val: ShardSet, accelerator: Accelerator, networks: list[Any]) -> None:
    """Two of the validation set's samples through every network that will be evaluated."""
    alone: dict[str, Any] = {"rank": 0, "world": 1, "device": accelerator.device, "cache": "off"}
    stream = Stream(val, min(recipe.eval_batch_size, 64), train=False, **alone)
    batch = next(validation_batches(stream | evaluation_chain(recipe))).map_tensors(lambda tensor: tensor[:2])
    with torch.no_grad(), accelerator.autocast():
        for network in networks:
            batch_sums(network.eval(), batch)


def _try_one(distiller: Distiller, probe: Batch) -> None:
    """A step's forward pass over a single sample, of which BatchNorm has no statistics where a map has one position.

    Raises:
        UserError: it cannot be.
    """
    try:
        with torch.no_grad():
            distiller.train()(probe.map_tensors(lambda values: values[:1]))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "the smallest batch of an epoch gives a process a single sample, of which BatchNorm has no statistics at a "
            "map's only position: raise batch_size, or use fewer processes"
        ) from None
