"""Correlation matching: Pearson and Spearman together, weighted by how sure the teacher is (Niu et al., CMKD)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, distributed

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_weight
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import NotNegative, Positive, Switch
from kdstream.objectives.pearson import correlation, need_classes_to_correlate, probabilities
from kdstream.objectives.spearman import rank_correlation, soft_ranks
from kdstream.objectives.term import Task, Term


def entropy(probability: Tensor) -> Tensor:
    """Shannon entropy of every row in nats, eq. (14): [N,C] -> [N]; 0 log 0 = 0."""
    return torch.special.entr(probability).sum(dim=-1)


def global_mean(values: Tensor) -> Tensor:
    """Mean over the samples of all processes: [N] on each -> scalar, the same on all. Without gradient."""
    values = values.detach()
    if not (distributed.is_available() and distributed.is_initialized()):
        return values.mean()
    parts = torch.stack([values.sum(), values.new_tensor(float(len(values)))])
    distributed.all_reduce(parts)
    return parts[0] / parts[1]


class CorrelationMatching(Term):
    r"""Pearson's and Spearman's losses of every sample, weighted by the teacher's entropy, batch mean.

    .. math:: \frac1N \sum_n a_n (1 - r_n) + b_n (1 - \rho_n), \quad
              (a_n, b_n) = \begin{cases} (\beta, \gamma) & H_n \ge \bar H \\ (\gamma, \beta) & H_n < \bar H \end{cases}

    r and rho as in :class:`~kdstream.objectives.pearson.Pearson` and
    :class:`~kdstream.objectives.spearman.Spearman` (soft ranks); H is the entropy of the teacher's output, and its
    mean runs over the batch.

    Source: Niu et al., "Efficient and robust knowledge distillation from a stronger teacher based on correlation
    matching", eq. (6), (7), (9)-(16), without the label term (alpha = 1 there: ``ce: 1``). Eq. (16) is followed; the
    text under eq. (15) has the two cases the other way round.

    Args:
        beta: the larger weight, >= 0; default 4 (section VI-A).
        gamma: the smaller weight, >= 0; default 1 (section VI-A).
        temperature: T > 0. Default 4, as there on CIFAR-100; 1 on ImageNet.
        strength: of the soft ranks of the probabilities, > 0. None is published; default 1/C^2, with which the
            Spearman part's gradient is about that of Pearson's; with 1.0, the package torchsort's default, it
            vanishes: see :class:`~kdstream.objectives.spearman.Spearman`.
        entropy_of: "raw" = H of softmax(v), as eq. (14) is printed; "softened" = H of p^T, standardised and by T.
        zscore: standardise the logits of each row first; false is the ablation in Table VI there.

    Raises:
        UserError: a setting out of range; no teacher, or one of another number of classes; fewer than three classes,
            over which a correlation has no gradient.
    """

    over_batch = True

    def __init__(
        self,
        beta: NotNegative = 4.0,
        gamma: NotNegative = 1.0,
        temperature: Positive = 4.0,
        strength: Positive | None = None,
        entropy_of: Literal["raw", "softened"] = "raw",
        zscore: Switch = True,
    ):
        super().__init__()
        self.beta = beta
        self.gamma = gamma
        need_weight("cmkd", beta=self.beta, gamma=self.gamma)
        self.temperature = temperature
        self.strength = strength
        self.entropy_of = entropy_of
        self.zscore = zscore

    def setup(self, task: Task) -> None:
        need_classes_to_correlate("cmkd", task)

    def parts(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """1 - r and 1 - rho of every sample: logits [N,C], [N,C] -> [N], [N]."""
        ours, theirs = (probabilities(logits, self.temperature, self.zscore) for logits in (student, teacher))
        return 1 - correlation(ours, theirs), 1 - rank_correlation(*soft_ranks(ours, theirs, self.strength))

    def entropies(self, teacher: Tensor) -> Tensor:
        """H of every sample: the teacher's logits [N,C] -> [N]."""
        if self.entropy_of == "softened":
            return entropy(probabilities(teacher, self.temperature, self.zscore))
        return entropy(torch.softmax(at_least_float32(teacher), dim=-1))

    def weights(self, entropies: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of every sample: H [N] -> [N], [N]."""
        unsure = entropies >= (entropies.mean() if self.over_slices else global_mean(entropies))
        beta, gamma = entropies.new_tensor(self.beta), entropies.new_tensor(self.gamma)
        return torch.where(unsure, beta, gamma), torch.where(unsure, gamma, beta)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        pearson, spearman = self.parts(student.logits, teacher.logits)
        on_pearson, on_spearman = self.weights(self.entropies(teacher.logits))
        return (on_pearson * pearson + on_spearman * spearman).mean()
