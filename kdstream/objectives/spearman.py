"""Spearman matching: the student shall order the classes as the teacher does (Niu et al., CMKD)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Positive, Switch
from kdstream.objectives.common.soft_rank import soft_rank
from kdstream.objectives.pearson import need_classes_to_correlate, probabilities
from kdstream.objectives.term import Task, Term


def exact_rank(values: Tensor) -> Tensor:
    """Ordinary ranks of every row, without gradient: 1 = the smallest; tied values have their mean rank.

    Args:
        values: [N,C].

    Returns:
        [N,C] in 1..C, float32 or the type of ``values`` if that is wider.
    """
    values = at_least_float32(values.detach()).contiguous()
    ordered = values.sort(dim=-1).values
    below, up_to = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + up_to + 1).to(values.dtype) / 2


def soft_ranks(student: Tensor, teacher: Tensor, strength: float | None) -> tuple[Tensor, Tensor]:
    """Soft ranks of two sets of rows in one call, which an accelerator does in half the time: [N,C] each.

    Args:
        student, teacher: [N,C].
        strength: see :func:`~kdstream.objectives.common.soft_rank.soft_rank`; None: 1/C^2.
    """
    classes = student.shape[-1]
    ranks = soft_rank(torch.cat([student, teacher]), classes**-2 if strength is None else strength)
    return ranks[: len(student)], ranks[len(student) :]


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rho from ranks by CMKD eq. (7): 1 - 6 sum d^2 / (C (C^2 - 1)); [N,C], [N,C] -> [N] in -1..1."""
    classes = a.shape[-1]
    return 1 - 6 * (a - b).square().sum(dim=-1) / (classes * (classes**2 - 1))


class Spearman(Term):
    r"""One minus the rank correlation over classes of student and teacher, batch mean.

    .. math:: \frac1N \sum_n (1 - \rho_n), \quad
              \rho = 1 - \frac{6 \sum_c d_c^2}{C (C^2 - 1)}, \quad d = \mathrm{rank}(p^S) - \mathrm{rank}(p^T)

    p as in :class:`~kdstream.objectives.pearson.Pearson`. The ranks are those of
    :func:`~kdstream.objectives.common.soft_rank.soft_rank`, on both sides.

    Source: Niu et al., "Efficient and robust knowledge distillation from a stronger teacher based on correlation
    matching", eq. (7), (9)-(11), (13), which ranks as Blondel et al. 2020 do without saying how strongly it softens.

    Args:
        temperature: T > 0. Default 4, as there on CIFAR-100; 1 on ImageNet (section VI-A).
        strength: of the soft ranks, > 0, in units of probability. No value is published; default 1/C^2, about the
            distance between neighbours among C probabilities. At T = 4 the loss is then 0.6 of that with exact ranks
            and its gradient 0.65 of Pearson's, at C = 10, 100 and 1000 alike (normal logits that correlate by 0.7);
            at T = 1 the ratio of the gradients is 0.9, 0.6 and 0.4. With 1.0, the package torchsort's default, all
            soft ranks are nearly equal and **the term vanishes**: at T = 4 its gradient is 7e-5, 8e-9 and 8e-13 of
            Pearson's. To rank the standardised logits in place of the probabilities would be another strength only:
            at T = 4 ranks of theirs with T/C give the same.
        ranks: "soft"; or "exact" = ordinary ranks, a measure only: it has no gradient.
        zscore: standardise the logits of each row first.

    Raises:
        UserError: a setting out of range; no teacher, or one of another number of classes; fewer than three classes,
            over which a correlation has no gradient.
    """

    def __init__(
        self,
        temperature: Positive = 4.0,
        strength: Positive | None = None,
        ranks: Literal["soft", "exact"] = "soft",
        zscore: Switch = True,
    ):
        super().__init__()
        self.temperature = temperature
        self.strength = strength
        self.ranks = ranks
        self.zscore = zscore

    def setup(self, task: Task) -> None:
        need_classes_to_correlate("spearman", task)

    def ranked(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks of both sides' classes: logits [N,C], [N,C] -> [N,C], [N,C]."""
        if self.ranks == "exact":  # those of the logits: the softmax keeps the order, but for rounding
            return exact_rank(student), exact_rank(teacher)
        ours, theirs = (probabilities(logits, self.temperature, self.zscore) for logits in (student, teacher))
        return soft_ranks(ours, theirs, self.strength)

    def coefficients(self, student: Tensor, teacher: Tensor) -> Tensor:
        """rho of every sample: logits [N,C], [N,C] -> [N]."""
        return rank_correlation(*self.ranked(student, teacher))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return (1 - self.coefficients(student.logits, teacher.logits)).mean()
