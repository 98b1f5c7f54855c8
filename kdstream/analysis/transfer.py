"""Transferability: how often images that are made to fool one network fool another.

"Knowledge distillation beyond model compression", section IV-D, figure 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstream.batch import Batch
from kdstream.display.charts import Plotter
from kdstream.display.figures_page import Cells, FiguresPage
from kdstream.stream.normalize import to_unit

Answer = Callable[[Tensor], Tensor]
"""Images float [n,3,H,W] in [0,1] -> logits [n,C], differentiable."""


@dataclass(frozen=True)
class Transfer:
    """Between S networks.

    Attributes:
        names: of them.
        clean: percent of the images that each classifies correctly.
        images: [target][source]: how many both classify correctly; 0 where the source is not attacked.
        shares: [target][source]: percent of those that the target gets wrong when the source is attacked; None where
            there are none.
    """

    names: list[str]
    clean: list[float]
    images: list[list[int]]
    shares: list[list[float | None]]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


def pgd(answer: Answer, image: Tensor, label: Tensor, epsilon: float, step: float, steps: int) -> Tensor:
    """Projected gradient ascent on the cross-entropy, by signs, within +-epsilon of the images and within [0,1].

    It begins at the images themselves, so equal calls give equal results.

    Args:
        answer: the network that is attacked.
        image: float [n,3,H,W] in [0,1].
        label: int64 [n].
        epsilon, step: in units of pixels in [0,1].
        steps: how many.

    Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks".
    """
    low, high = (image - epsilon).clamp(min=0), (image + epsilon).clamp(max=1)
    attacked = image.detach().clone()
    for _ in range(steps):
        attacked.requires_grad_(True)
        with torch.enable_grad():
            loss = F.cross_entropy(answer(attacked), label, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, attacked)
        attacked = torch.clamp(attacked.detach() + step * gradient.sign(), low, high)
    return attacked


@torch.no_grad()
def transferability(
    names: Sequence[str],
    networks: Sequence[Answer],
    batches: Iterable[Batch],
    *,
    epsilon: float = 0.031,
    step: float = 0.003,
    steps: int = 20,
    attacked: Sequence[int] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Transfer:
    """Attack networks on what they classify correctly, and show the result to all.

    Args:
        names: of the networks.
        networks: in eval mode.
        batches: images uint8, or float in [0,1], unaugmented.
        epsilon, step, steps: of :func:`pgd`; the paper's.
        attacked: numbers of those that are; None = every one.
        advance: told how many more images are done.
    """
    count = len(networks)
    sources = range(count) if attacked is None else attacked
    total, right = 0, [0] * count
    both, fooled = ([[0] * count for _ in range(count)] for _ in range(2))
    for batch in batches:
        image, label = to_unit(batch.image), batch.label
        correct = [network(image).argmax(1) == label for network in networks]
        total += len(label)
        right = [known + int(one.sum()) for known, one in zip(right, correct, strict=True)]
        for source in sources:
            mine = correct[source]
            if not mine.any():
                continue
            fooling = pgd(networks[source], image[mine], label[mine], epsilon, step, steps)
            for target, other in enumerate(networks):
                shared = correct[target][mine]
                wrong = other(fooling).argmax(1) != label[mine]
                both[target][source] += int(shared.sum())
                fooled[target][source] += int((shared & wrong).sum())
        advance(len(label))
    shares = [[100 * fooled[t][s] / both[t][s] if both[t][s] else None for s in range(count)] for t in range(count)]
    return Transfer(list(names), [100 * n / max(total, 1) for n in right], both, shares)


def page(found: Transfer, about: str, attack: str) -> FiguresPage:
    """Table and chart: a column is the network that is attacked, a row the one that is shown the result."""
    text = [["-" if value is None else f"{value:.2f}" for value in row] for row in found.shares]
    others = [
        [value for s, value in enumerate(row) if s != t and value is not None] for t, row in enumerate(found.shares)
    ]
    means = [f"{sum(row) / len(row):.2f}" if row else "-" for row in others]
    rows = [
        (name, [*cells, mean, f"{clean:.2f}"])
        for name, cells, mean, clean in zip(found.names, text, means, found.clean, strict=True)
    ]
    table = Cells("% fooled", "target \\ source", [*found.names, "by others", "clean top-1 %"], rows)
    values = [[float("nan") if value is None else value for value in row] for row in found.shares]
    note = "% of the images that both classify correctly"
    chart = Plotter().matrix("Transferability", values, found.names, note=note, across="source", down="target", top=100)
    facts = [
        ("attack", attack),
        ("source, target", "the network that is attacked; the one that is shown the result"),
        ("a cell", "percent of the images which source and target both classify correctly that the target gets wrong"),
        ("by others", "mean of a row without its own attack"),
    ]
    return FiguresPage("Transferability of adversarial images", about, [table], [chart], facts)
