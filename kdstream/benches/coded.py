"""Bench ``coded``: training steps with a coded teacher against steps without."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from kdstream import jpeg as kdstream_jpeg
from kdstream.batch import Batch
from kdstream.benches.jpeg import noise
from kdstream.benches.measure import SUBSAMPLING, alternate, bench, milliseconds, new_table, ratio, step, whole
from kdstream.jpeg.reference import Subsampling
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives import parse_loss
from kdstream.stream.coded import coded as coded_stage
from kdstream.stream.coded import planned
from kdstream.stream.coding_plan import ORIGINAL
from kdstream.stream.normalize import standardise
from kdstream.stream.teacher import answer
from kdstream.training.distiller import Distiller

MEAN, STD = (0.5, 0.5, 0.5), (0.29, 0.29, 0.29)
"""Of uniformly random pixels."""
ONLINE_TARGET, PLAN_TARGET = 1.10, 1.05


class Steps:
    """Training steps on one batch of random images, with and without coding.

    Args:
        teacher, student: names of networks.
        batch: N.
        size: side length of the images.
        classes: C.
        delta, subsampling: of the coded stage.
    """

    def __init__(
        self, teacher: str, student: str, batch: int, size: int, classes: int, delta: int, subsampling: Subsampling
    ):
        torch.manual_seed(0)
        images = noise(batch, size)
        network = build(teacher, classes)
        settle(network, standardise(images, MEAN, STD))
        self.teacher = Tapped(network).requires_grad_(False).eval()
        self.distiller = Distiller(
            Tapped(build(student, classes)), parse_loss({"ce": 0.1, "kd": {"weight": 0.9, "temperature": 4}})
        ).train()
        self.optimizer = torch.optim.SGD(self.distiller.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
        self.batch = Batch(images, torch.randint(0, classes, (batch,)), torch.arange(batch))
        self.subsampling = subsampling
        self.qualities = tuple(range(0, 101, delta))
        self.coded = coded_stage("hkl", delta=delta, subsampling=subsampling)
        self.plan = torch.tensor([*self.qualities, ORIGINAL]).byte()[torch.randint(len(self.qualities) + 1, (batch,))]
        self.versions = self.compress()
        self.limit: dict[str, int] = {}

    def compress(self) -> Tensor:
        """The JPEG work of an online step: uint8 [N,V,3,H,W]."""
        return kdstream_jpeg.roundtrip(self.batch.image, self.qualities, self.subsampling)

    @torch.no_grad()
    def teacher_passes(self) -> None:
        """The teacher alone, one pass for each of the V versions, which are there already."""
        for version in self.versions.unbind(1):
            self.teacher(standardise(version, MEAN, STD))

    def kd(self) -> None:
        """A plain step: the teacher on the images, then the student forward, backward and SGD."""
        self._train(self.batch)

    def online(self) -> None:
        """A coded step, plan=off: V versions, the teacher on them and on the images, the selection, the student."""
        self._train(next(self.coded(iter([self.batch]))))

    def planned(self) -> None:
        """A coded step with a plan: each image's one version, the teacher on it, the student."""
        versions, qualities = planned(self.batch.image, self.batch.index, self.plan, self.subsampling)
        self._train(replace(self.batch, variants=versions, qualities=qualities))

    def _train(self, batch: Batch) -> None:
        batch = answer(batch, self.teacher, MEAN, STD, self.limit)
        batch = replace(batch, image=standardise(batch.image, MEAN, STD))
        self.optimizer.zero_grad()
        loss, _, _ = self.distiller(batch)
        loss.backward()
        self.optimizer.step()


@torch.no_grad()
def settle(network: nn.Module, images: Tensor) -> None:
    """Set the BatchNorm statistics of a fresh network to those of ``images``, as training would: no huge numbers."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    network.train()(images)


@bench(
    {
        "--teacher": {"default": "resnet56", "metavar": "MODEL", "help": "default: resnet56"},
        "--student": {"default": "resnet20", "metavar": "MODEL", "help": "default: resnet20"},
        "--batch": {"type": whole, "default": 64, "metavar": "N", "help": "images of a step (default: 64)"},
        "--size": {"type": whole, "default": 32, "metavar": "PIXELS", "help": "of the images (default: 32)"},
        "--classes": {"type": whole, "default": 100, "metavar": "N", "help": "default: 100"},
        "--delta": {"type": step, "default": 5, "metavar": "STEP", "help": "between qualities 0..100 (default: 5)"},
        "--subsampling": SUBSAMPLING,
    }
)
def coded(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A training step with the coded teacher, online and with a plan, against what it cannot do without.

    The online step is compared with V teacher passes (one by one, a batch each, over versions that are there already)
    and a KD step: the same V + 1 passes and the same training, hence what exceeds 1 is JPEG, selection and how the
    teacher stage cuts its batches. The step with a plan is compared with the KD step, which has one pass as well.
    """
    given = {name: getattr(options, name) for name in ("teacher", "student", "batch", "size", "classes", "delta")}
    steps = Steps(**given, subsampling=options.subsampling)
    steps.kd()
    steps.planned()
    planned = alternate({"KD": steps.kd, "planned": steps.planned}, options.seconds / 3)
    works = {"passes": steps.teacher_passes, "KD": steps.kd, "JPEG": steps.compress, "online": steps.online}
    online = alternate(works, options.seconds * 2 / 3)
    count = len(steps.qualities)
    comparisons = [
        (
            "coded step online / (V teacher passes + KD step)",
            ratio(online, ["online"], ["passes", "KD"]),
            ONLINE_TARGET,
        ),
        ("coded step with a plan / KD step", ratio(planned, ["planned"], ["KD"]), PLAN_TARGET),
        ("coded step online / KD step", ratio(online, ["online"], ["KD"]), None),
        ("JPEG versions alone / coded step online", ratio(online, ["JPEG"], ["online"]), None),
    ]
    times = {
        f"V = {count} teacher passes, versions ready": milliseconds(online, "passes"),
        "KD step: teacher, student forward, backward, SGD": milliseconds(online, "KD"),
        "V teacher passes + KD step": milliseconds(online, "passes", "KD"),
        f"V = {count} JPEG versions alone": milliseconds(online, "JPEG"),
        "coded step online: JPEG, teacher on V + 1, selection, student": milliseconds(online, "online"),
        "KD step, in turn with the next": milliseconds(planned, "KD"),
        "coded step with a plan: one JPEG version, teacher, student": milliseconds(planned, "planned"),
    }
    title = f"{options.teacher} -> {options.student}, {options.batch} images {options.size}x{options.size}"
    table = new_table(f"{title}, delta {options.delta}, {options.subsampling}", "work", "ms")
    for name, value in times.items():
        table.add_row(name, f"{value:.1f}")
    console.print(table)
    table = new_table("Ratios: median of the rounds (range)", "compared", "ratio", "target", "rounds")
    rows = []
    for name, found, target in comparisons:
        wanted = target if options.threads == 1 else None
        shown = f"{_digits(found.median)} ({_digits(found.low)}-{_digits(found.high)})"
        table.add_row(name, shown, "" if wanted is None else f"<= {wanted:.2f}", str(found.rounds))
        about = {"compared": name, "ratio": found.median, "low": found.low, "high": found.high}
        rows.append({**about, "rounds": found.rounds, "target": wanted})
    console.print(table)
    settings = {**given, "subsampling": options.subsampling, "versions": count}
    return {"settings": settings, "milliseconds": times, "comparisons": rows}


def _digits(value: float) -> str:
    return f"{value:.3f}" if value >= 0.1 else f"{value:.2g}"
