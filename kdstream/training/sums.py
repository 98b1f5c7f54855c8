"""Sums over an epoch: accuracy, losses, the teacher's answers and the student's beside them, chosen JPEG qualities."""

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
STUDENT = ("samples", "pairs", "entropy", "divergence", "pearson", "spearman")
"""What stands in ``Sums.student``: counts of images, and of those that a teacher answered as well; then sums over them.
"""


class Summary(NamedTuple):
    """Means over an epoch.

    Attributes:
        top1: percent.
        loss: the weighted sum of the terms.
        terms: name -> unweighted value.
        entropy: mean and deviation of the entropy of the teacher's answers, in nats.
        gt_probability: the same of the probability that it gives to the right class.
        qualities: JPEG quality (-1 = the original), as text -> how often it was chosen.
        student: means over images of the student's answers in training: ``entropy``, in nats; beside a teacher's also
            ``divergence``, D(p_T || q) of the student's probabilities q from the teacher's at the temperature T of
            :attr:`Sums.temperature`, in nats; ``pearson`` and ``spearman``, the correlation of the two rows of logits
            and of their ranks. What was not counted is not there.
    """

    top1: float
    loss: float
    terms: dict[str, float]
    entropy: tuple[float, float]
    gt_probability: tuple[float, float]
    qualities: dict[str, int]
    student: dict[str, float]


@dataclass
class Sums:
    """What is summed over an epoch, in float64; saved with every checkpoint.

    Attributes:
        names: of the terms.
        device: of the batches.
        values: float64 [7 + T], on the device if it has float64: those of :data:`HEAD`, then one a term.
        temperature: of the teacher's answers, from which the divergence is taken.
        qualities: int64 [102], how often each quality was chosen; the original first.
        student: float64 [6], those of :data:`STUDENT`.
    """

    names: list[str]
    device: torch.device
    temperature: float = 1.0
    values: Tensor = field(init=False)
    qualities: Tensor = field(init=False)
    student: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.values = torch.zeros(len(HEAD) + len(self.names), dtype=torch.float64, device=exact_device(self.device))
        self.qualities = torch.zeros(102, dtype=torch.int64, device=self.device)
        self.student = torch.zeros(len(STUDENT), dtype=torch.float64, device=self.values.device)

    def add(self, batch: Batch, loss: Tensor, terms: Tensor, logits: Tensor) -> None:
        """Count one step."""
        count, zero = len(batch), self.values.new_zeros(())
        teacher = None if batch.teacher is None else exact(batch.teacher.logits)
        student = exact(logits)
        beside = teacher is not None and teacher.shape == student.shape
        # In one tensor where they can be, for half as many launches.
        if teacher is not None and beside:
            answers = [torch.stack([teacher, student])]
        else:
            answers = [z[None] for z in (teacher, student) if z is not None]
        log_ps = [z.log_softmax(-1) for z in answers]
        entropies = torch.cat([-(log_p.exp() * log_p).sum(-1) for log_p in log_ps])
        peaky, compared = [zero] * 4, [zero] * 3
        if teacher is not None:
            log_p = log_ps[0][0]
            entropy, truth = entropies[0], log_p.gather(1, batch.label.to(log_p.device)[:, None])[:, 0].exp()
            peaky = [entropy.sum(), (entropy**2).sum(), truth.sum(), (truth**2).sum()]
            if beside:
                target = log_p if self.temperature == 1 else (teacher / self.temperature).log_softmax(-1)
                compared = [(target.exp() * (target - log_ps[0][1])).sum(), *correlations(answers[0]).sum(-1)]
        correct = exact((logits.argmax(1) == batch.label).sum())
        head = torch.stack([torch.full_like(correct, count), correct, exact(loss) * count, *peaky])
        self.values += torch.cat([head, exact(terms) * count])
        counts = [torch.full_like(correct, count), torch.full_like(correct, count if beside else 0)]
        self.student += torch.stack([*counts, entropies[-1].sum(), *compared])
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
            student=self._student(reduce(self.student.clone()).tolist()),
            qualities={str(i - 1): n for i, n in enumerate(reduce(self.qualities.clone()).tolist()) if n},
        )

    def _student(self, sums: list[float]) -> dict[str, float]:
        samples, pairs, entropy, *compared = sums
        found = {"entropy": entropy / samples} if samples else {}
        beside = zip(STUDENT[3:], compared, strict=True)
        return found | ({name: value / pairs for name, value in beside} if pairs else {})

    def state_dict(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return {"values": self.values.cpu(), "qualities": self.qualities.cpu(), "student": self.student.cpu()}

    def add_state(self, state: dict[str, Tensor]) -> None:
        """Add what a checkpoint holds of one process."""
        self.values += state["values"].to(self.values.device)
        self.qualities += state["qualities"].to(self.device)
        if "student" in state:  # earlier versions did not count it; then the means are those of the rest of the epoch
            self.student += state["student"].to(self.student.device)


def correlations(logits: Tensor) -> Tensor:
    """How two networks' logits for the same images go together.

    Args:
        logits: float64 [2,N,C], of one network and the other.

    Returns:
        float64 [2,N]: Pearson's coefficient of an image's logits, and of their ranks (Spearman's; equal logits stand in
        the order of their classes). Logits that are all equal correlate with none: 0.
    """
    order = logits.float().argsort(dim=-1, stable=True)  # networks answer in no more than float32
    places = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    ranks = torch.zeros_like(logits).scatter_(-1, order, places.expand_as(logits))
    rows = torch.stack([logits, ranks])
    rows = rows - rows.mean(-1, keepdim=True)
    return ((rows[:, 0] * rows[:, 1]).sum(-1) / (rows * rows).sum(-1).prod(1).sqrt()).nan_to_num()
