"""Setup: everything that a training consists of, built once from its recipe, for the trainer and for the rehearsal."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from kdstream import recipe as settings
from kdstream.batch import Batch, Outputs
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.hashing import network_name
from kdstream.models import build
from kdstream.models.pretrained import without_weights
from kdstream.models.taps import Tapped
from kdstream.notes import about_of, architecture, taps_of
from kdstream.objectives import Loss, Task, parse_loss
from kdstream.recipe import Recipe
from kdstream.stream.plan import Plan
from kdstream.stream.stage import Chain, batch_stage
from kdstream.stream.stream import Stream
from kdstream.tap_names import TWO_HEADS
from kdstream.training.average import averaged
from kdstream.training.chains import evaluation_chain, refuse_mixed, training_chain
from kdstream.training.distiller import Distiller, Stage
from kdstream.training.networks import Converted, Teacher, make_student, tapped
from kdstream.training.recompute import checkpoint_blocks


@dataclass
class Setup:
    """What a training works with.

    Attributes:
        loss: the recipe's, its terms set up.
        stream: training batches, opened.
        eval_stream: validation batches.
        probe: two samples on the device, standardised, with the teacher's answer; the same on every process.
        larger_probe: makes a probe of up to 64 samples.
        distiller: student and terms, on the device.
        networks: what is evaluated, and may be exported: "student", "ema" where the recipe wants it, and, in mutual
            learning, the student's peers.
        smallest_slice: fewest samples that a process sees in one forward pass.
        note: what a user should know of the student's weights, if anything.
    """

    loss: Loss
    stream: Stream
    eval_stream: Stream
    probe: Batch
    larger_probe: Callable[[], Batch]
    distiller: Distiller
    networks: dict[str, nn.Module]
    smallest_slice: int
    note: str | None

    def begin(self, stage: Stage) -> list[nn.Parameter]:
        """Make ``stage`` the distiller's current one; the parameters to optimise.

        Raises:
            UserError: a loss that can be no loss of what is trained.
        """
        parameters = self.distiller.begin(stage, self.probe)
        if stage.trains == "nothing":
            return parameters
        if parameters and not self.distiller.reached:
            self.distiller.look(self.larger_probe())
        if not self.distiller.reached:
            raise UserError(f"the loss of phase {stage.name} depends on nothing that is trained")
        return parameters


def set_up(
    recipe: Recipe,
    train: ShardSet,
    val: ShardSet,
    teacher: Teacher | None,
    accelerator: Accelerator,
    *,
    rehearsal: bool = False,
    layout: torch.memory_format | None = None,
    between_chunks: Callable[[], None] | None = None,
    skipped_file: Path | None = None,
) -> Setup:
    """Build everything. All processes must call it together: where a coding plan is wanted, they make it here.

    Args:
        recipe: of the training, its precision settled.
        train, val: the splits.
        teacher: a trained one; None where no term looks at it.
        accelerator: says where networks run, on how many processes.
        rehearsal: at no cost: without coded versions, plans and downloads.
        layout: memory format; None = the recipe's, or the one that suits the device.
        between_chunks: called now and then while a split is decoded or a coding plan is made, by all processes
            together; may raise to stop.
        skipped_file: where training samples are listed whose image cannot be decoded; None: anywhere.

    Raises:
        UserError: what cannot work.
    """
    device, world = accelerator.device, accelerator.num_processes
    layout = layout or memory_format(recipe, device)
    loss = parse_loss(recipe.loss)
    if loss.uses_teacher and teacher is None:
        names = ", ".join(loss.asking)
        raise UserError(f"recipe {recipe.name}: the loss ({names}) needs a teacher: add teacher: to the recipe")
    if recipe.sync_batchnorm and world > 1:
        _need_synchronised(loss, device)
    chain = training_chain(recipe, loss.uses_teacher)
    refuse_mixed(loss, chain)
    chain = uncoded(chain) if rehearsal else chain
    network_of_teacher: Tapped | None = None
    given: dict[str, Any] = {}
    if teacher is not None and loss.uses_teacher:
        compiled = recipe.compile and not rehearsal
        network_of_teacher, given = _answering_teacher(teacher, recipe, loss, train, accelerator, layout, compiled)
    place: dict[str, Any] = {"rank": accelerator.process_index, "world": world, "device": device}
    place |= {"workers": 0 if rehearsal else recipe.workers, "given": given}
    place["cache"] = "off" if rehearsal else recipe.cache
    own = {**place, **({"rank": 0, "world": 1} if rehearsal else {}), **_reading(recipe), "skipped_file": skipped_file}
    stream = Stream(train, recipe.batch_size, recipe.seed, **own)
    stream = stream | chain
    eval_stream = Stream(val, recipe.eval_batch_size, train=False, **place) | evaluation_chain(recipe)
    if not rehearsal:
        if network_of_teacher is not None:
            network_of_teacher.to(device)
        stream.open(
            between_chunks or (lambda: None)
        )  # where a coding plan is wanted and not there yet, it is made here
        eval_stream.open()
        if network_of_teacher is not None:
            network_of_teacher.cpu()
    taught_by = "" if network_of_teacher is None else f"teacher {architecture(network_of_teacher.module)}"
    with fitting(taught_by, train.image_size):
        probe, larger_probe = probes(train, recipe, given, chain, device)
    torch.manual_seed(recipe.seed)
    wanted = recipe.student
    if rehearsal and wanted.model is not None:
        wanted = wanted.model_copy(update={"options": without_weights(wanted.model, wanted.options)})
    network = make_student(wanted, train.num_classes, train.classes)
    note = about_of(network).get("note")
    statistics = (given["teacher_mean"], given["teacher_std"]) if network_of_teacher is not None else None
    network, student, asked_teacher, smallest = prepare(
        network, wanted, network_of_teacher, statistics, loss, probe, train, recipe, world, stream.plan.group
    )
    if asked_teacher is not None:
        asked_teacher.to(device)
    distiller = Distiller(student, loss, layout).to(device).to(memory_format=layout)
    deployed = loss.deploy(network)
    networks = {"student": deployed, **({"ema": averaged(deployed)} if recipe.ema else {}), **loss.peers()}
    if recipe.checkpoint_gradients:  # behind the last copy that is made of it
        checkpoint_blocks(network)
    if recipe.compile and not rehearsal:
        student.compile()  # in place: what evaluates and saves the plain network sees nothing of it
    return Setup(loss, stream, eval_stream, probe.to(device), larger_probe, distiller, networks, smallest, note)


def _reading(recipe: Recipe) -> dict[str, Any]:
    """How training samples are read, as the recipe wants it."""
    return {"order": recipe.data.order or "shuffled", "on_error": recipe.data.on_error}


def _answering_teacher(
    teacher: Teacher,
    recipe: Recipe,
    loss: Loss,
    train: ShardSet,
    accelerator: Accelerator,
    layout: torch.memory_format,
    compiled: bool,
) -> tuple[Tapped, dict[str, Any]]:
    """The teacher with the taps that the loss reads, on the CPU, and what the stream's stages are given of it."""
    plain = teacher.network.cpu()
    network = tapped(plain, loss.teacher_taps, teacher.settings).eval().requires_grad_(False)
    network.to(memory_format=layout)
    forward = torch.compile(network) if compiled else network
    given = {
        "teacher": answering(forward, accelerator, layout),
        "teacher_mean": teacher.mean or train.mean,
        "teacher_std": teacher.std or train.std,
        "teacher_hash": network_name(plain, teacher.hash),
        "teacher_taps": network.paths,
        "precision": recipe.precision,
    }
    return network, given


def prepare(
    network: nn.Module,
    wanted: settings.Model,
    teacher: Tapped | None,
    statistics: tuple[Sequence[float], Sequence[float]] | None,
    loss: Loss,
    probe: Batch,
    train: ShardSet,
    recipe: Recipe,
    world: int,
    group: int = 1,
) -> tuple[nn.Module, Tapped, Tapped | Converted | None, int]:
    """Let every term adapt the student, give it the taps that they read, and set the terms up; all on the CPU.

    Args:
        network: the plain student.
        wanted: the recipe's student, whose taps may name further ones.
        teacher: with the taps that the terms read; None where no term looks at it.
        statistics: mean and deviation that the teacher's images are standardised with.
        loss: whose terms these are.
        probe: two samples, standardised, with the teacher's answer.
        train: the training set.
        recipe: of the training.
        world: processes that train together.
        group: see :class:`kdstream.stream.plan.Plan`.

    Returns:
        The adapted network, the same with taps, the teacher as terms may ask it (standardised images -> Outputs), and
        the fewest samples that a process sees in one forward pass.

    Raises:
        UserError: what the terms cannot work with; a teacher whose answer is not finite.
    """
    plan = Plan(len(train), recipe.batch_size, group=group)
    smallest = plan.smallest_slice(world)
    if smallest == 0:
        raise UserError(
            "the smallest batch of an epoch has fewer samples than there are processes: raise batch_size, or use fewer "
            "processes"
        )
    if probe.teacher is not None:
        for name, value in {"logits": probe.teacher.logits, **probe.teacher.features}.items():
            if not value.isfinite().all():
                raise UserError(
                    f"the teacher's answer to the first images is not finite ({name}): its weights are damaged, its "
                    "mean and std do not fit, or its precision is too low"
                )
    network = loss.adapt(network, None if teacher is None else teacher.module, probe.image, build)
    if recipe.sync_batchnorm and world > 1:  # before taps listen to a layer that would be replaced
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    heads = TWO_HEADS if set(TWO_HEADS) <= set(taps_of(network)) else ()
    student = tapped(network, [*loss.student_taps, *heads], wanted)
    with torch.no_grad(), fitting(f"student {architecture(network)}", probe.image.shape):
        student_outputs = student.eval()(probe.image).detach()
    asked: Tapped | Converted | None = teacher
    if teacher is not None and statistics is not None and statistics != (train.mean, train.std):
        asked = Converted(teacher, train, *statistics)
    loss.setup(
        Task(
            num_classes=train.num_classes,
            num_samples=len(train),
            epochs=recipe.epochs,
            student_outputs=student_outputs,
            teacher_outputs=probe.teacher,
            student=student,
            teacher=asked,
            labels=_where_they_lie(train.labels),
            build=build,
            mean=train.mean,
            std=train.std,
            smallest_batch=smallest,
            smallest_related=smallest if recipe.relations == "local" else plan.smallest_slice(1),
            relations=recipe.relations,
        )
    )
    if recipe.sync_batchnorm and world > 1:
        for term in loss.terms:
            nn.SyncBatchNorm.convert_sync_batchnorm(term)
    return network, student, asked, smallest


TOO_SMALL = ("too small", "Kernel size can't be greater", "shapes cannot be multiplied", "mat1 and mat2 must have")
"""What torch says of images that a network leaves nothing of, or whose maps its classifier is not for."""


@contextlib.contextmanager
def fitting(network: str, size: Sequence[int] | None) -> Iterator[None]:
    """What torch says of images that a network is not for becomes one line.

    Args:
        network: its role and name.
        size: of the images, height and width last; None = they differ, or nobody knows.

    Raises:
        UserError: they do not fit.
    """
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if not network or not any(words in said for words in TOO_SMALL):
            raise
        which = "these images" if size is None else f"images of {size[-1]}x{size[-2]}"
        raise UserError(
            f"{network} does not take {which} ({said}): name a network that does (`kdstream models`), or give them "
            "another size, as stream: decode | augment(inception, 224)"
        ) from error


@contextlib.contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """What torch's compiler says where it cannot compile a network becomes one line.

    Args:
        wanted: whether the recipe asks for it.

    Raises:
        UserError: it cannot.
    """
    try:
        yield
    except RuntimeError as error:
        if not wanted or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        said = " ".join(str(error).split())[:200]
        raise UserError(f"compile: torch.compile fails here ({said}): set compile=false") from error


def _where_they_lie(labels: np.ndarray) -> Tensor:
    """The labels as a tensor without a copy: those of a mapped index are shared by all processes, and read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(np.require(labels, requirements="A"))


def _need_synchronised(loss: Loss, device: torch.device) -> None:
    """That BatchNorm can be synchronised.

    Raises:
        UserError: torch's cannot on a CPU; a term asks the student on some processes only, for which the others would
            wait forever.
    """
    if device.type == "cpu":
        raise UserError(
            "sync_batchnorm is for GPUs: on a CPU, torch normalises each process's slice by itself; leave it out, use "
            "one process, or a network without BatchNorm"
        )
    if names := [name for name, _, term in loss if term.asks_again]:
        raise UserError(
            f"sync_batchnorm does not go with {', '.join(names)}, which asks the student again on some processes only: "
            "leave one of them out"
        )


def memory_format(recipe: Recipe, device: torch.device) -> torch.memory_format:
    """Of images and weights: the recipe's, or the one that suits the device."""
    wanted = device.type == "cuda" if recipe.channels_last is None else recipe.channels_last
    return torch.channels_last if wanted else torch.contiguous_format


def answering(
    teacher: Callable[[Tensor], Outputs], accelerator: Accelerator, layout: torch.memory_format
) -> Callable[[Tensor], Outputs]:
    """The teacher in the training's precision and memory format; its answers in float32."""
    if accelerator.mixed_precision == "no" and layout == torch.contiguous_format:
        return teacher

    def answer(images: Tensor) -> Outputs:
        with accelerator.autocast():
            return teacher(images.contiguous(memory_format=layout)).map(Tensor.float)

    return answer


def probes(
    train: ShardSet, recipe: Recipe, given: Mapping[str, Any], chain: Chain, device: torch.device
) -> tuple[Batch, Callable[[], Batch]]:
    """The batches with which networks and losses are tried before the first step, the same on every process.

    Returns:
        A batch of two samples, made on the CPU, and a function that makes a larger one on ``device``.
    """

    def first(count: int, place: torch.device | str) -> Batch:
        count = min(count, len(train))
        alone: dict[str, Any] = {"rank": 0, "world": 1, "device": place, "cache": "off", "given": given}
        stream = Stream(train, count, recipe.seed, **alone, on_error=recipe.data.on_error) | chain
        return next(iter(stream))

    return first(2, "cpu"), partial(first, 64, device)


def uncoded(chain: Chain) -> Chain:
    """The chain without ``coded`` and without kept answers; the teacher answers for each image as if that were the
    version chosen."""
    stages = [stage for stage in chain.stages if stage.role != "coded"]
    for place, stage in enumerate(stages):
        if stage.role == "teacher" and "cache" in stage.settings:
            stages[place] = replace(stage, settings={**stage.settings, "cache": "off"})
    if len(stages) < len(chain.stages):
        stages.insert([stage.role for stage in stages].index("teacher"), _offer_originals)
    return Chain(tuple(stages))


@batch_stage
def _offer_originals(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Each image as its only version."""
    for batch in batches:
        yield replace(batch, variants=batch.image[:, None], qualities=batch.index.new_full((len(batch), 1), -1))
