"""Pearson matching: the student's probabilities shall be a linear image of the teacher's (Niu et al., CMKD)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_classes, need_same_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Positive, Switch
from kdstream.objectives.term import Task, Term


def need_classes_to_correlate(owner: str, task: Task) -> None:
    """That student and teacher tell the same classes apart, at least three: the correlation of two values is 1 or -1,
    whatever they are, so that it has no gradient.

    Raises:
        UserError: no teacher, another number of classes, or fewer than three.
    """
    need_same_classes(owner, task)
    need_classes(owner, task, 3, "a correlation over classes")


def standardized(logits: Tensor) -> Tensor:
    """Rows of mean 0 and standard deviation 1 (divisor c - 1): CMKD eq. (9)-(11); [N,C] -> [N,C], C >= 2.

    A constant row becomes zeros.
    """
    deviation = logits.std(dim=-1, keepdim=True)
    return (logits - logits.mean(dim=-1, keepdim=True)) / deviation.masked_fill(deviation == 0, 1)


def probabilities(logits: Tensor, temperature: float, zscore: bool = True) -> Tensor:
    """Softmax of the (standardised) logits by T: p^S and p^T of CMKD eq. (4), (5), (9).

    Args:
        logits: [N,C], C >= 2.
        temperature: T > 0.
        zscore: standardise each row first.

    Returns:
        [N,C], at least float32.
    """
    logits = at_least_float32(logits)
    return torch.softmax((standardized(logits) if zscore else logits) / temperature, dim=-1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's r of the rows, CMKD eq. (6): [N,C], [N,C] -> [N] in -1..1; 0 where a row is constant."""
    a, b = (values - values.mean(dim=-1, keepdim=True) for values in (a, b))
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return (a * b).sum(dim=-1) / norms.masked_fill(norms == 0, 1)


class Pearson(Term):
    r"""One minus the correlation over classes of student's and teacher's probabilities, batch mean.

    .. math:: \frac1N \sum_n \big(1 - r(p^S_n, p^T_n)\big), \quad
              p = \sigma(\hat z / T), \quad \hat z = \frac{z - \mathrm{mean}\, z}{\mathrm{std}\, z}

    Source: Niu et al., "Efficient and robust knowledge distillation from a stronger teacher based on correlation
    matching", eq. (6), (9)-(12). No factor T^2 and no epsilon, unlike DIST.

    Args:
        temperature: T > 0. Default 4, as there on CIFAR-100; 1 on ImageNet (section VI-A).
        zscore: standardise the logits of each row first; false is the ablation in Table VI there.

    Raises:
        UserError: a setting out of range; no teacher, or one of another number of classes; fewer than three classes,
            over which a correlation has no gradient.
    """

    def __init__(self, temperature: Positive = 4.0, zscore: Switch = True):
        super().__init__()
        self.temperature = temperature
        self.zscore = zscore

    def setup(self, task: Task) -> None:
        need_classes_to_correlate("pearson", task)

    def coefficients(self, student: Tensor, teacher: Tensor) -> Tensor:
        """r of every sample: logits [N,C], [N,C] -> [N]."""
        return correlation(*(probabilities(logits, self.temperature, self.zscore) for logits in (student, teacher)))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return (1 - self.coefficients(student.logits, teacher.logits)).mean()
