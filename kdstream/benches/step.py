"""Bench ``step``: what every objective adds to a training step, and how long others need for the same loss."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch
from kdstream.benches.coded import MEAN, STD, settle
from kdstream.benches.jpeg import noise
from kdstream.benches.measure import Ratio, alternate, bench, milliseconds, new_table, ratio, whole
from kdstream.benches.others import OTHERS, Other
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives import OBJECTIVES, Task, Term, parse_loss
from kdstream.registry import nearest
from kdstream.stream.normalize import standardise
from kdstream.stream.teacher import answer
from kdstream.training.distiller import Distiller, Stage

SAMPLES = 50_000
"""Size of the pretended training set (CIFAR's), which memory banks depend on."""
LOGIT_TARGET = 1.03
LOGITS_ALONE = (
    *("ce", "cmkd", "confidence_penalty", "ctkd", "dist", "dkd", "kd", "label_smoothing", "logit_mse", "nkd"),
    *("pearson", "renyi", "spearman", "ttm", "wsld", "wttm"),
)
"""Objectives of logits alone, which should cost nothing that one notices."""


class Pair:
    """A teacher, a student and a batch of random images, ready to train on.

    Args:
        teacher, student: names of networks.
        batch: N.
        size: side length of the images.
        classes: C.
    """

    def __init__(self, teacher: str, student: str, batch: int, size: int, classes: int):
        torch.manual_seed(0)
        images = noise(batch, size)
        self.classes = classes
        self.student_name = student
        self.teacher = build(teacher, classes)
        settle(self.teacher, standardise(images, MEAN, STD))
        self.teacher.requires_grad_(False).eval()
        self.labels = torch.randint(classes, (SAMPLES,))
        index = torch.randperm(SAMPLES)[:batch]
        self.batch = Batch(images, self.labels[index], index, rng_key=torch.arange(batch))

    def student(self) -> nn.Module:
        """A student; always the same."""
        torch.manual_seed(1)
        return build(self.student_name, self.classes)

    def bare(self) -> Callable[[], None]:
        """A step of plain KD as one writes it by hand, without anything of kdstream but the networks."""
        student = self.student().train()
        optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)

        def step() -> None:
            images = standardise(self.batch.image, MEAN, STD)
            with torch.no_grad():
                target = self.teacher(images)
            logits = student(images)
            divergence = F.kl_div(
                F.log_softmax(logits / 4, 1), F.log_softmax(target / 4, 1), reduction="batchmean", log_target=True
            )
            loss = 0.1 * F.cross_entropy(logits, self.batch.label) + 0.9 * 16 * divergence
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step


@dataclass
class Work:
    """One objective, set up.

    Attributes:
        distiller: student and terms (cross-entropy beside the objective).
        term: the objective.
        teacher: the teacher with the taps that it asks for; None where it needs none.
        probe: two samples with the teacher's answer, standardised.
        batch, labels: the pair's.
    """

    distiller: Distiller
    term: Term
    teacher: Tapped | None
    probe: Batch
    batch: Batch
    labels: Tensor

    def step(self, stage: Stage) -> Callable[[], None]:
        """A step of one of the objective's stages."""
        parameters = self.distiller.begin(stage, self.probe)
        self.distiller.train()
        optimizer = torch.optim.SGD(parameters, 1e-4, momentum=0.9, weight_decay=5e-4) if parameters else None

        def step() -> None:
            loss, _, _ = self.distiller(self.answered(self.batch))
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return step

    def loss_alone(self, other: Other) -> tuple[Callable[[], None], Callable[[], None]]:
        """The objective's loss with its gradients over given features, ours and somebody else's."""
        batch = self.answered(self.batch)
        with torch.no_grad():
            found = self.distiller.student(batch.image)
        theirs = other(self.term, self.labels)

        def work(loss: Callable[..., Tensor]) -> Callable[[], None]:
            def run() -> None:
                loss(found.map(lambda value: value.detach().requires_grad_()), batch.teacher, batch).backward()

            return run

        return work(self.term), work(theirs)

    def answered(self, batch: Batch) -> Batch:
        """The batch with the teacher's answer, standardised."""
        if self.teacher is not None:
            batch = answer(batch, self.teacher, MEAN, STD, {})
        return replace(batch, image=standardise(batch.image, MEAN, STD))


def set_up(name: str, pair: Pair) -> Work:
    """The objective ``name`` with its default settings, beside the cross-entropy.

    Raises:
        UserError: it is not for such a pair of networks.
    """
    terms = parse_loss({"ce": 0.1, name: {}} if name != "ce" else {"ce": 1})
    term = terms[-1].term
    network = pair.student()
    probe = replace(pair.batch.map_tensors(lambda t: t[:2]))
    images = standardise(probe.image, MEAN, STD)
    teacher = Tapped(pair.teacher, list(dict.fromkeys(term.teacher_taps))).eval() if term.uses_teacher else None
    network = term.adapt(network, pair.teacher if term.uses_teacher else None, images, build)
    student = Tapped(network, list(dict.fromkeys(term.student_taps)))
    probe = replace(probe, teacher=None)
    if teacher is not None:
        probe = answer(probe, teacher, MEAN, STD, {})
    probe = replace(probe, image=images)
    with torch.no_grad():
        outputs = student.eval()(images)
    task = Task(
        num_classes=pair.classes,
        num_samples=SAMPLES,
        epochs=240,
        student_outputs=outputs,
        teacher_outputs=probe.teacher,
        student=student,
        teacher=teacher,
        labels=pair.labels,
        build=build,
    )
    for _, _, one in terms:
        one.setup(task)
    return Work(Distiller(student, terms), term, teacher, probe, pair.batch, pair.labels)


@bench(
    {
        "--objectives": {"metavar": "A,B", "help": "default: all"},
        "--teacher": {"default": "resnet32x4", "metavar": "MODEL", "help": "default: resnet32x4"},
        "--student": {"default": "resnet8x4", "metavar": "MODEL", "help": "default: resnet8x4"},
        "--batch": {"type": whole, "default": 64, "metavar": "N", "help": "images of a step (default: 64)"},
        "--size": {"type": whole, "default": 32, "metavar": "PIXELS", "help": "of the images (default: 32)"},
        "--classes": {"type": whole, "default": 100, "metavar": "N", "help": "default: 100"},
    }
)
def step(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A training step of every objective against a KD loop written by hand, and its loss against other libraries'."""
    names = _names(options.objectives)
    given = {name: getattr(options, name) for name in ("teacher", "student", "batch", "size", "classes")}
    pair = Pair(**given)
    bare = pair.bare()
    bare()
    table = new_table(
        f"{options.teacher} -> {options.student}, {options.batch} images {options.size}x{options.size}",
        *("work", "trains", "step ms", "step / bare KD", "loss ms", "other's ms", "other / kdstream"),
    )
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    with console.status("") as status:
        for name in names:
            status.update(f"measuring {name}")
            try:
                work = set_up(name, pair)
            except UserError as error:
                refused[name] = str(error)
                continue
            for row in _rows(name, work, bare, options.seconds):
                rows.append(row)
                table.add_row(*_cells(row))
    console.print(table)
    for why in refused.values():
        console.print(f"not for this pair: {why}", soft_wrap=True)
    console.print("trains: parameters that the objective trains beside the student")
    console.print(
        "step / bare KD: the step's time over that of a KD loop written by hand, median of alternating pairs;"
    )
    console.print(f"the target for objectives of logits alone is <= {LOGIT_TARGET:.2f}")
    console.print("other / kdstream: the other library's time for loss and gradients over kdstream's; above 1: slower")
    return {"settings": given, "objectives": rows, "not_for_this_pair": refused}


def _names(asked: str | None) -> Sequence[str]:
    names = list(OBJECTIVES) if asked is None else asked.split(",")
    for name in names:
        if name not in OBJECTIVES:
            raise UserError(f"--objectives: unknown objective {name!r}: {nearest(name, OBJECTIVES)}")
    return names


def _rows(name: str, work: Work, bare: Callable[[], None], seconds: float) -> list[dict[str, Any]]:
    """One row for each stage of the training in which the objective has a part."""
    rows = []
    for stage in work.distiller.stages():
        if stage.phase is None and not work.term.in_main:
            continue
        run = work.step(stage)
        run()
        rounds = alternate({"bare": bare, "step": run}, seconds)
        found = ratio(rounds, ["step"], ["bare"])
        title = name if stage.phase is None else stage.name
        target = LOGIT_TARGET if name in LOGITS_ALONE else None
        reached = {name for name in work.distiller.reached if name.startswith("terms.")}
        trained = sum(p.numel() for name, p in work.distiller.named_parameters() if name in reached)
        row = {
            "objective": name,
            "work": title,
            "trains": trained,
            "step_ms": milliseconds(rounds, "step"),
            "bare_ms": milliseconds(rounds, "bare"),
        }
        rows.append({**row, **found._asdict(), "target": target, "others": []})
    if rows:
        rows[-1]["others"] = [_compare(other, work, seconds / 4) for other in OTHERS.get(name, ()) if other.installed()]
    return rows


def _compare(other: Other, work: Work, seconds: float) -> dict[str, Any]:
    ours, theirs = work.loss_alone(other)
    ours()
    theirs()
    rounds = alternate({"ours": ours, "theirs": theirs}, seconds)
    found = ratio(rounds, ["theirs"], ["ours"])
    times = {"kdstream_ms": milliseconds(rounds, "ours"), "other_ms": milliseconds(rounds, "theirs")}
    return {"name": other.name, **times, **found._asdict()}


def _cells(row: dict[str, Any]) -> list[str]:
    def shown(found: dict[str, Any]) -> str:
        return str(Ratio(found["median"], found["low"], found["high"], found["rounds"]))

    others = row["others"]
    return [
        row["work"],
        f"{row['trains']:,}" if row["trains"] else "",
        f"{row['step_ms']:.1f}",
        f"{row['median']:.3f} ({row['low']:.3f}-{row['high']:.3f})",
        f"{others[0]['kdstream_ms']:.2f}" if others else "",
        "\n".join(f"{other['other_ms']:.2f}" for other in others),
        "\n".join(f"{shown(other)} {other['name']}" for other in others),
    ]
