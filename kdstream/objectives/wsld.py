"""Weighted soft labels: what the student knows better than the teacher counts less (Zhou et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_same_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Positive
from kdstream.objectives.term import Task, Term


def sample_weight(student: Tensor, teacher: Tensor, label: Tensor, eps: float) -> Tensor:
    """1 - exp(-CE_student / (CE_teacher + eps)) with label cross-entropies at temperature 1, without gradient:
    logits [N,C], [N,C], labels int64 [N] or their shares [N,C] -> [N] in 0..1."""
    ours = F.cross_entropy(at_least_float32(student.detach()), label, reduction="none")
    theirs = F.cross_entropy(at_least_float32(teacher.detach()), label, reduction="none")
    return -torch.expm1(-ours / (theirs + eps))


class WeightedSoftLabels(Term):
    r"""Softened cross-entropy, each sample weighted by how far the student's label loss is above the teacher's.

    .. math:: T^2 \frac1N \sum_n w_n \, H(p^T_n, q^T_n), \quad
              w_n = 1 - \exp\Big(-\frac{H(y_n, q_n)}{H(y_n, p_n) + \epsilon}\Big)

    No gradient runs through w. A cross-entropy, not a divergence: the gradient is the same.

    Source: Zhou et al. 2021, "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff
    Perspective" (arXiv:2102.00650); ``eps`` is the authors' code's. Their alpha is the outer weight beside a
    cross-entropy of 1: 2.25 on CIFAR-100 (cls_KD), 2.5 on ImageNet.

    Args:
        temperature: T > 0. Default 4 (CIFAR-100, cls_KD). ImageNet: 2 (the authors).
        eps: keeps a teacher that is sure of the label from dividing by 0; > 0.

    Raises:
        UserError: a setting out of range; no teacher, or one of another number of classes.
    """

    def __init__(self, temperature: Positive = 4.0, eps: Positive = 1e-7):
        super().__init__()
        self.temperature = temperature
        self.eps = eps

    def setup(self, task: Task) -> None:
        need_same_classes("wsld", task)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        weight = sample_weight(student.logits, teacher.logits, batch.target, self.eps)
        target = torch.softmax(at_least_float32(teacher.logits) / self.temperature, dim=1)
        loss = F.cross_entropy(at_least_float32(student.logits) / self.temperature, target, reduction="none")
        return self.temperature**2 * (weight * loss).mean()
