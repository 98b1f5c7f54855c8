"""Robustness: accuracy on corrupted images, by corruption and severity.

Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations"; table V
of "Efficient and robust knowledge distillation from a stronger teacher based on correlation matching". CIFAR-10-C and
CIFAR-100-C are data sets of their own (``kdstream shards cifar100c``), whose splits are called ``fog_3``. For any other
data the same corruptions are made here by imagecorruptions-imaug (pip install "kdstream[robustness]"), at the strengths
that its authors gave them for ImageNet; those of CIFAR's files are weaker.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdstream.batch import Batch
from kdstream.display.charts import Line, Plotter, nth_look
from kdstream.display.figures_page import Cells, FiguresPage
from kdstream.errors import UserError
from kdstream.stream.normalize import to_bytes

SEVERITIES = (1, 2, 3, 4, 5)
PAPERS = ("brightness", "contrast", "elastic_transform", "fog", "pixelate")
"""Those of the paper's table V."""
COMMON = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The fifteen of the benchmark."""
SMALLEST = 32
"""Pixels of a side, of the images that the library takes."""

Corrupt = Callable[[np.ndarray, str, int], np.ndarray]
"""(image uint8 [H,W,3], corruption, severity) -> the same, corrupted."""


@dataclass(frozen=True)
class Robustness:
    """Of S networks.

    Attributes:
        names: of them.
        clean: top-1 on the images as they are, percent.
        top1: corruption -> severity -> top-1 of each network, percent.
    """

    names: list[str]
    clean: list[float]
    top1: dict[str, dict[int, list[float]]]

    def mean(self, corruption: str) -> list[float]:
        """Top-1 of each network, mean over the severities."""
        found = list(self.top1[corruption].values())
        return [sum(values) / len(found) for values in zip(*found, strict=True)]

    def overall(self) -> list[float]:
        """The same, mean over the corruptions."""
        found = [self.mean(corruption) for corruption in self.top1]
        return [sum(values) / len(found) for values in zip(*found, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; the change is in points, from clean images."""
        means = {
            corruption: {
                name: {"top1": top1, "change": top1 - clean}
                for name, top1, clean in zip(self.names, self.mean(corruption), self.clean, strict=True)
            }
            for corruption in self.top1
        }
        top1 = {name: {str(n): values for n, values in by.items()} for name, by in self.top1.items()}
        return {"names": self.names, "clean": self.clean, "top1": top1, "mean": means}


@torch.no_grad()
def top1s(
    networks: Sequence[Callable[[Tensor], Tensor]],
    batches: Iterable[Batch],
    advance: Callable[[int], None] = lambda count: None,
) -> list[float]:
    """Percent that each network classifies correctly.

    Args:
        networks: images uint8, or float in [0,1], [n,3,H,W] -> logits.
        batches: of the images.
        advance: told how many more images are done.
    """
    right, total = [0] * len(networks), 0
    for batch in batches:
        total += len(batch)
        for i, network in enumerate(networks):
            right[i] += int((network(batch.image).argmax(1) == batch.label).sum())
        advance(len(batch))
    if not total:
        raise UserError("no images to measure on")
    return [100 * count / total for count in right]


def robustness(
    names: Sequence[str],
    networks: Sequence[Callable[[Tensor], Tensor]],
    clean: Callable[[], Iterable[Batch]],
    corrupted: Callable[[str, int], Iterable[Batch]],
    corruptions: Sequence[tuple[str, Sequence[int]]],
    advance: Callable[[int], None] = lambda count: None,
) -> Robustness:
    """Measure networks on clean and on corrupted images.

    Args:
        names: of the networks.
        networks: as :func:`top1s` takes them.
        clean: the images as they are.
        corrupted: those of a corruption at a severity.
        corruptions: names, and the severities of each.
        advance: told how many more images are done.
    """
    top = top1s(networks, clean(), advance)
    found = {
        corruption: {n: top1s(networks, corrupted(corruption, n), advance) for n in severities}
        for corruption, severities in corruptions
    }
    return Robustness(list(names), top, found)


def corrupting(batches: Iterable[Batch], corruption: str, severity: int, corrupt: Corrupt) -> Iterator[Batch]:
    """The images, corrupted one by one; what an image becomes depends on its index alone, not on its batch.

    Raises:
        UserError: images that are too small.
    """
    state = np.random.get_state()
    kind = zlib.crc32(f"{corruption} {severity}".encode())
    try:
        for batch in batches:
            images = to_bytes(batch.image).permute(0, 2, 3, 1).cpu().numpy()
            if min(images.shape[1:3]) < SMALLEST:
                side = f"{images.shape[1]} x {images.shape[2]}"
                raise UserError(f"images of {side} pixels: corruptions are made from {SMALLEST} on, cut them larger")
            made = []
            for image, index in zip(images, batch.index.tolist(), strict=True):
                np.random.seed((kind + index) % 2**32)  # the library draws from NumPy's own generator
                made.append(np.asarray(corrupt(np.ascontiguousarray(image), corruption, severity), np.uint8))
            stacked = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
            yield replace(batch, image=stacked.to(batch.image.device))
    finally:
        np.random.set_state(state)


def library() -> Corrupt:
    """imagecorruptions.

    Raises:
        UserError: it is not installed.
    """
    try:
        from imagecorruptions import corrupt
    except ImportError as error:
        raise UserError(
            f'no corruptions without imagecorruptions ({error}): pip install "kdstream[robustness]"; or name data '
            "that is corrupted already, as of kdstream shards cifar100c"
        ) from error
    return lambda image, corruption, severity: corrupt(image, severity=severity, corruption_name=corruption)


def splits_of(names: Iterable[str]) -> dict[str, list[int]]:
    """Of a data set's splits, those that are a corruption at a severity: corruption -> severities."""
    found: dict[str, list[int]] = {}
    for name in names:
        if kind := re.fullmatch(r"(.+)_([1-5])", name):
            found.setdefault(kind[1], []).append(int(kind[2]))
    return {name: sorted(severities) for name, severities in sorted(found.items())}


def page(found: Robustness, about: str, made: str) -> FiguresPage:
    """Tables and charts."""
    columns = ["clean", *found.top1, "mean"]
    overall = found.overall()
    rows, changes = [], []
    for i, name in enumerate(found.names):
        means = [*(found.mean(corruption)[i] for corruption in found.top1), overall[i]]
        rows.append((name, [f"{value:.2f}" for value in (found.clean[i], *means)]))
        changes.append((name, [f"{value - found.clean[i]:+.2f}" for value in means]))
    tables = [
        Cells("top-1, %, mean over the severities", "network", columns, rows),
        Cells("change from clean images, points", "network", columns[1:], changes),
    ]
    draw = Plotter()
    looks = [nth_look(name, i) for i, name in enumerate(found.names)]
    charts = []
    for corruption, by in found.top1.items():
        lines = [
            Line(
                [0.0, *map(float, by)], [found.clean[i], *(values[i] for values in by.values())], look.colour, look.dash
            )
            for i, look in enumerate(looks)
        ]
        if (chart := draw.lines(f"{corruption}, top-1 %", lines, over="severity")) is not None:
            chart.looks = looks
            charts.append(chart)
    facts = [("corruptions", made), ("severity", "0 stands for the clean images"), ("mean", "over the corruptions")]
    return FiguresPage("Corruption robustness", about, tables, charts, facts)
