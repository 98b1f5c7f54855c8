"""Sums over an epoch: accuracy, losses, how peaky the teacher's answers were, which JPEG qualities were chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kdstream.batch import Batch
from kdstream.exact import exact, exact_device

HEAD = ("samples", "correct", "loss", "entropy", "entropy_squares", "gt_probability", "gt_probability_squares")
"""What stands first in ``Sums.values``; the terms follow."""


class Summary(NamedTuple):
    """Means over an epoch.

    Attributes:
        top1: percent.
        loss: the weighted sum of the terms.
        terms: name -> unweighted value.
        entropy: mean and deviation of the entropy of the teacher's answers, in nats.
        gt_probability: the same of the probability that it gives to the right class.
        qualities: JPEG quality (-1 = the original), as text -> how often it was chosen.
    """

    top1: float
    loss: float
    terms: dict[str, float]
    entropy: tuple[float, float]
    gt_probability: tuple[float, float]
    qualities: dict[str, int]


@dataclass
class Sums:
    """What is summed over an epoch, in float64; saved with every checkpoint.

    Attributes:
        names: of the terms.
        device: of the batches.
        values: float64 [7 + T], on the device if it has float64: those of :data:`HEAD`, then one a term.
        qualities: int64 [102], how often each quality was chosen; the original first.
    """

    names: list[str]
    device: torch.device
    values: Tensor = field(init=False)
    qualities: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.values = torch.zeros(len(HEAD) + len(self.names), dtype=torch.float64, device=exact_device(self.device))
        self.qualities = torch.zeros(102, dtype=torch.int64, device=self.device)

    def add(self, batch: Batch, loss: Tensor, terms: Tensor, logits: Tensor) -> None:
        """Count one step."""
        peaky = [self.values.new_zeros(())] * 4
        if batch.teacher is not None:
            log_p = torch.log_softmax(exact(batch.teacher.logits), dim=1)
            entropy = -(log_p.exp() * log_p).sum(1)
            truth = log_p.gather(1, batch.label.to(log_p.device)[:, None])[:, 0].exp()
            peaky = [entropy.sum(), (entropy**2).sum(), truth.sum(), (truth**2).sum()]
        count = len(batch)
        correct = exact((logits.argmax(1) == batch.label).sum())
        head = torch.stack([torch.full_like(correct, count), correct, exact(loss) * count, *peaky])
        self.values += torch.cat([head, exact(terms) * count])
        if batch.quality is not None:
            self.qualities.index_add_(0, batch.quality + 1, torch.ones_like(batch.quality))

    def top1(self) -> float:
        """Percent, of what this process has seen so far."""
        count, correct = self.values[:2].tolist()
        return 100 * correct / max(count, 1)

    def summary(self, reduce: Callable[[Tensor], Tensor]) -> Summary:
        """The epoch's means; ``reduce`` sums a tensor over all processes, which must call this together."""
        values = reduce(self.values.clone()).tolist()
        sums = dict(zip(HEAD, values, strict=False))
        count = sums["samples"]

        def mean_std(name: str) -> tuple[float, float]:
            mean = sums[name] / count
            return mean, math.sqrt(max(sums[f"{name}_squares"] / count - mean**2, 0))

        return Summary(
            top1=100 * sums["correct"] / count,
            loss=sums["loss"] / count,
            terms={name: value / count for name, value in zip(self.names, values[len(HEAD) :], strict=True)},
            entropy=mean_std("entropy"),
            gt_probability=mean_std("gt_probability"),
            qualities={str(i - 1): n for i, n in enumerate(reduce(self.qualities.clone()).tolist()) if n},
        )

    def state_dict(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return {"values": self.values.cpu(), "qualities": self.qualities.cpu()}

    def add_state(self, state: dict[str, Tensor]) -> None:
        """Add what a checkpoint holds of one process."""
        self.values += state["values"].to(self.values.device)
        self.qualities += state["qualities"].to(self.device)
