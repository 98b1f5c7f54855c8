"""Weighted transformed teacher matching: samples with an unsure teacher count more (Zheng & Yang 2024)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_same_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Positive
from kdstream.objectives.term import Task, Term
from kdstream.objectives.ttm import transformed_kl


def power_sum(teacher: Tensor, gamma: float) -> Tensor:
    r"""How smooth the teacher's output is: :math:`U_\gamma(p) = \sum_c p_c^\gamma` of p = softmax at temperature 1.

    The powers are exponentials of gamma * log p. Their largest is at least C^-gamma, so that the plain sum needs no
    further care.

    Args:
        teacher: logits v, float [N,C].
        gamma: exponent > 0.

    Returns:
        [N], float32 for half-precision logits; for gamma <= 1 between 1 (one class has all) and C^(1-gamma) (uniform).
    """
    return (gamma * F.log_softmax(at_least_float32(teacher), dim=-1)).exp().sum(dim=-1)


class WeightedTransformedTeacherMatching(Term):
    r"""Transformed teacher matching with each sample's divergence multiplied by the teacher's power sum.

    .. math:: \frac1N \sum_n U_\gamma(p_n) \, \mathrm{KL}\big(\sigma(\gamma v_n) \,\|\, \sigma(z_n)\big)

    Reads no labels: without a ``ce`` beside it, a student learns from unlabelled images (Table 6 of the paper).

    Source: Zheng & Yang 2024, "Knowledge Distillation Based on Transformed Teacher Matching" (arXiv:2402.11148),
    eq. (22), where beta is the outer weight beside a cross-entropy of weight 1.

    Args:
        gamma: exponent 1/T > 0. Default 0.1, the paper's for most CIFAR-100 pairs (Tables 8 and 9: 0.1 to 0.4; with
            it goes an outer weight from 1.4 to 16, 3 for resnet32x4 -> resnet8x4; Table 6, without labels: 0.2 to
            0.6). ImageNet: 0.8 and weight 1.6 for ResNet-18, 0.7 and 3.5 for MobileNet.

    Raises:
        UserError: gamma out of range; no teacher, or one of another number of classes.
    """

    def __init__(self, gamma: Positive = 0.1):
        super().__init__()
        self.gamma = gamma

    def setup(self, task: Task) -> None:
        need_same_classes("wttm", task)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        divergence = transformed_kl(student.logits, teacher.logits, self.gamma)
        return (power_sum(teacher.logits, self.gamma) * divergence).mean()
