"""Transformed teacher matching: the student, without temperature, matches the softened teacher (Zheng & Yang 2024)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_same_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Positive
from kdstream.objectives.term import Task, Term


def transformed_kl(student: Tensor, teacher: Tensor, gamma: float) -> Tensor:
    r"""Divergence of the student's output from the power-transformed teacher's, sample by sample.

    .. math:: \mathrm{KL}(\hat p \,\|\, q), \quad \hat p_c = p_c^\gamma / \sum_j p_j^\gamma = \sigma(\gamma v)_c

    Computed from the scaled logits, as eq. (9) of the paper allows: the power of a probability that has underflowed
    to 0 stays 0, where the scaled logit still tells it from others.

    Args:
        student: logits z, float [N,C].
        teacher: logits v, float [N,C].
        gamma: exponent > 0, the inverse of the temperature.

    Returns:
        [N], each >= 0 in nats, float32 for half-precision logits.
    """
    log_q = F.log_softmax(at_least_float32(student), dim=-1)
    log_p = F.log_softmax(gamma * at_least_float32(teacher), dim=-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)


class TransformedTeacherMatching(Term):
    r"""Divergence of the student's output at temperature 1 from the power-transformed (coded) teacher's.

    .. math:: \frac1N \sum_n \mathrm{KL}\big(\sigma(\gamma v_n) \,\|\, \sigma(z_n)\big)

    Equal to KD plus a Rényi entropy of the student (:mod:`kdstream.objectives.renyi`). Reads no labels.

    Source: Zheng & Yang 2024, "Knowledge Distillation Based on Transformed Teacher Matching" (arXiv:2402.11148),
    eq. (2), where beta is the outer weight beside a cross-entropy of weight 1.

    Args:
        gamma: exponent 1/T > 0. Default 0.1, the paper's for most CIFAR-100 pairs (Tables 8 and 9: 0.1 to 0.4; with
            it goes an outer weight from 7 to 101, 100 for resnet32x4 -> resnet8x4).

    Raises:
        UserError: gamma out of range; no teacher, or one of another number of classes.
    """

    def __init__(self, gamma: Positive = 0.1):
        super().__init__()
        self.gamma = gamma

    def setup(self, task: Task) -> None:
        need_same_classes("ttm", task)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return transformed_kl(student.logits, teacher.logits, self.gamma).mean()
