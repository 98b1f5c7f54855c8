"""Rehearsal: what cannot work in a run is found in a second, and not after its teacher has been trained for hours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from kdstream import recipe as settings
from kdstream.batch import Batch
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.models.pretrained import without_weights
from kdstream.objectives import parse_loss
from kdstream.recipe import Recipe
from kdstream.stream.plan import Plan
from kdstream.stream.stage import Chain, batch_stage
from kdstream.stream.stream import Stream
from kdstream.training.accelerator import settle
from kdstream.training.chains import evaluation_chain, training_chain
from kdstream.training.distiller import Distiller
from kdstream.training.evaluate import batch_sums, validation_batches
from kdstream.training.networks import Teacher, make_student, tapped
from kdstream.training.prepare import answering, begin, memory_format, prepare, probes


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
            torch.manual_seed(recipe.seed)
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
    device, world = accelerator.device, accelerator.num_processes
    terms = parse_loss(recipe.loss)
    given: dict[str, Any] = {}
    tapped_teacher, statistics = None, None
    uses_teacher = any(term.uses_teacher for _, _, term in terms)
    if uses_teacher:
        assert teacher is not None
        taps = [tap for _, _, term in terms for tap in term.teacher_taps]
        tapped_teacher = tapped(teacher.network.cpu(), taps, teacher.settings).eval().to(memory_format=layout)
        statistics = teacher.mean or train.mean, teacher.std or train.std
        given = {"teacher": answering(tapped_teacher, accelerator, layout)}
        given |= {"teacher_mean": statistics[0], "teacher_std": statistics[1]}
    chain = _uncoded(training_chain(recipe, uses_teacher))
    probe, larger = probes(train, recipe, given, chain, device)
    wanted = recipe.student
    if wanted.model is not None:
        wanted = wanted.model_copy(update={"options": without_weights(wanted.model, wanted.options)})
    network = make_student(wanted, train.num_classes, train.classes)
    network, student, asked_teacher = prepare(
        network, wanted, tapped_teacher, statistics, terms, probe, train, recipe, world
    )
    if asked_teacher is not None:
        asked_teacher.to(device)
    distiller = Distiller(student, terms, layout).to(device, memory_format=layout)
    probe = probe.to(device)
    for stage in distiller.stages():
        with accelerator.autocast():
            begin(distiller, stage, probe, larger)
            if stage.trains == "student" and Plan(len(train), recipe.batch_size).smallest_slice(world) == 1:
                _try_one(distiller, probe)
    for _, _, term in reversed(terms):
        network = term.deploy(network)
    peers = {name: peer for _, _, term in terms for name, peer in term.peers().items()}
    if val is not None:
        few = Stream(val, min(recipe.eval_batch_size, 64), train=False, rank=0, world=1, device=device, given=given)
        batch = next(validation_batches(few | evaluation_chain(recipe))).map_tensors(lambda tensor: tensor[:2])
        with torch.no_grad(), accelerator.autocast():
            for one in (network, *peers.values()):
                batch_sums(one.eval(), batch)
    if recipe.export_network == "best" and any(peer.spec != network.spec for peer in peers.values()):
        return None
    exported = settings.Teacher(taps=recipe.student.taps)
    return Teacher(network.requires_grad_(False).eval().cpu(), exported, None, None, hash="")


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


def _uncoded(chain: Chain) -> Chain:
    """The chain without ``coded``; the teacher answers for each image as if that were the version chosen."""
    stages = [stage for stage in chain.stages if stage.name != "coded"]
    if len(stages) < len(chain.stages):
        stages.insert([stage.name for stage in stages].index("teacher"), _offer_originals)
    return Chain(tuple(stages))


@batch_stage
def _offer_originals(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Each image as its only version."""
    for batch in batches:
        yield replace(batch, variants=batch.image[:, None], qualities=batch.index.new_full((len(batch), 1), -1))
