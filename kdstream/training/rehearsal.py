"""Rehearsal: what cannot work in a run is found in a second, and not after its teacher has been trained for hours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from kdstream import recipe as settings
from kdstream.errors import UserError
from kdstream.models.pretrained import without_weights
from kdstream.objectives import parse_loss
from kdstream.recipe import Recipe
from kdstream.stream.shards import ShardSet
from kdstream.stream.stage import Chain, batch_stage
from kdstream.stream.stream import Stream
from kdstream.training.chains import training_chain
from kdstream.training.distiller import Distiller
from kdstream.training.networks import Teacher, make_student, tapped
from kdstream.training.prepare import prepare
from kdstream.types import Batch


def rehearse(recipe: Recipe, train: ShardSet, teacher: Teacher | None, accelerator: Accelerator) -> Teacher | None:
    """Everything that comes before the first step of a training, with two images; nothing is written.

    All processes must call it together: some terms exchange something in every forward pass. Global random states are
    left as they were, so that the training gives the same weights as without it.

    Args:
        recipe: of the training.
        train: its images.
        teacher: a trained one, or one that a rehearsal gave; None where no term looks at it.
        accelerator: says where the networks run.

    Returns:
        The network that the training would export, untrained, as the teacher in the rehearsal of the next one. None
        where the training decides which of different networks that is.

    Raises:
        UserError: what the training itself would say.
    """
    device = accelerator.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        try:
            return _rehearse(recipe, train, teacher, device)
        except UserError as error:
            raise UserError(f"recipe {recipe.name}: {error}") from error


def _rehearse(recipe: Recipe, train: ShardSet, teacher: Teacher | None, device: torch.device) -> Teacher | None:
    terms = parse_loss(recipe.loss)
    given: dict[str, Any] = {}
    tapped_teacher, statistics = None, None
    uses_teacher = any(term.uses_teacher for _, _, term in terms)
    if uses_teacher:
        assert teacher is not None
        taps = [tap for _, _, term in terms for tap in term.teacher_taps]
        tapped_teacher = tapped(teacher.network.cpu(), taps, teacher.settings).eval()
        statistics = teacher.mean or train.mean, teacher.std or train.std
        given = {"teacher": tapped_teacher, "teacher_mean": statistics[0], "teacher_std": statistics[1]}
    chain = _uncoded(training_chain(recipe, uses_teacher))
    probe = next(iter(Stream(train, min(2, len(train)), recipe.seed, rank=0, world=1, given=given) | chain))
    wanted = recipe.student
    if wanted.model is not None:
        wanted = wanted.model_copy(update={"options": without_weights(wanted.model, wanted.options)})
    network = make_student(wanted, train.num_classes, train.classes)
    network, student, asked_teacher = prepare(
        network, wanted, tapped_teacher, statistics, terms, probe, train, recipe.epochs
    )
    if asked_teacher is not None:
        asked_teacher.to(device)
    distiller = Distiller(student, terms).to(device)
    probe = probe.to(device)
    for stage in distiller.stages():
        if not distiller.begin(stage, probe) and stage.trains != "nothing":
            raise UserError(f"the loss of phase {stage.name} depends on nothing that is trained")
    for _, _, term in reversed(terms):
        network = term.deploy(network)
    if any(peer.spec != network.spec for _, _, term in terms for peer in term.peers().values()):
        return None
    exported = settings.Teacher(taps=recipe.student.taps)
    return Teacher(network.requires_grad_(False).eval().cpu(), exported, None, None, hash="")


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
