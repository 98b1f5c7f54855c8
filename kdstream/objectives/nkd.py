"""Normalised knowledge distillation: soft label of the target, cross-entropy among the others (Yang et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_same_classes
from kdstream.objectives.common.nontarget import without_label
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import NotNegative, Positive
from kdstream.objectives.term import Task, Term


def target_part(student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:
    """Mean of -p_y log q_y at temperature 1: logits [N,C], [N,C], labels int64 [N] -> scalar >= 0."""
    loss = F.cross_entropy(at_least_float32(student), label, reduction="none")
    share = (-F.cross_entropy(at_least_float32(teacher), label, reduction="none")).exp()
    return (share * loss).mean()


def nontarget_cross_entropy(student: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy between the outputs over the C-1 classes beside the label, softened with ``temperature``:
    logits [N,C], [N,C], labels int64 [N] -> scalar >= 0 (the teacher's entropy where they agree)."""
    ours = without_label(at_least_float32(student) / temperature, label)
    theirs = without_label(at_least_float32(teacher) / temperature, label)
    return F.cross_entropy(ours, torch.softmax(theirs, dim=1))


class NormalisedKD(Term):
    r"""The label's cross-entropy weighted by the teacher's trust in it, and the cross-entropy among the other classes.

    .. math:: -\frac1N \sum_n p_y \log q_y - \gamma T^2 \frac1N \sum_n \sum_{i \ne y} \tilde p^T_i \log \tilde q^T_i

    The tilde is a softmax over the C-1 other classes. The first part is at temperature 1 whatever T is.

    Source: Yang et al. 2023, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels" (arXiv:2303.13005); the authors add a cross-entropy of weight 1.

    Args:
        gamma: weight of the second part, >= 0. Default 3.5 with T = 3: the authors' on CIFAR-100 (ResNet-34 -> 18).
            ImageNet: 1.5 for convolutional students, 1 for DeiT, both with T = 1.
        temperature: T > 0.

    Raises:
        UserError: a setting out of range; no teacher, or one of another number of classes.
    """

    def __init__(self, gamma: NotNegative = 3.5, temperature: Positive = 3.0):
        super().__init__()
        self.gamma = gamma
        self.temperature = temperature

    def setup(self, task: Task) -> None:
        need_same_classes("nkd", task)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        target = target_part(student.logits, teacher.logits, batch.label)
        others = nontarget_cross_entropy(student.logits, teacher.logits, batch.label, self.temperature)
        return target + self.gamma * self.temperature**2 * others
