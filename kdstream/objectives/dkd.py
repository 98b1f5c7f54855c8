"""Decoupled knowledge distillation: the label's class and the other classes apart (Zhao et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_classes, need_same_classes, need_weight
from kdstream.objectives.common.nontarget import without_label
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import NotNegative, Positive, Whole
from kdstream.objectives.term import Task, Term


def split(logits: Tensor, label: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logarithms of the softened output as two distributions: label against all others, and among the others.

    The two-way one comes from the log-odds: a subtraction 1 - p_y would lose all digits for a confident network.

    Args:
        logits: float [N,C], C >= 2.
        label: int64 [N].
        temperature: T > 0.

    Returns:
        [N,2] and [N,C] (of which the label's entry stands for probability 0), float32 for half-precision logits.
    """
    logits = at_least_float32(logits) / temperature
    others = without_label(logits, label)
    total = torch.logsumexp(others, dim=1, keepdim=True)
    odds = logits.gather(1, label[:, None]) - total
    return F.logsigmoid(torch.cat([odds, -odds], dim=1)), others - total


def decoupled(student: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 times the two divergences of which KD's is made; per sample and without the factor it is
    KL = TCKD + (1 - p_y) NCKD.

    Args:
        student: logits z, float [N,C], C >= 2.
        teacher: logits v, float [N,C].
        label: int64 [N].
        temperature: T > 0.

    Returns:
        TCKD (label against all others) and NCKD (among the others), batch means, scalars >= 0.
    """
    pairs = zip(split(student, label, temperature), split(teacher, label, temperature), strict=True)
    tckd, nckd = (temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True) for q, p in pairs)
    return tckd, nckd


class DecoupledKD(Term):
    r"""Weighted sum of the divergence of the label's share and of the divergence among the other classes.

    .. math:: f \, (\alpha\,\mathrm{TCKD} + \beta\,\mathrm{NCKD}), \quad
              \mathrm{TCKD} = T^2 \, \mathrm{KL}\big([p^T_y, 1-p^T_y] \,\|\, [q^T_y, 1-q^T_y]\big), \quad
              \mathrm{NCKD} = T^2 \, \mathrm{KL}\big(\tilde p^T \,\|\, \tilde q^T\big)

    The tilde is a softmax over the C-1 other classes. The factor f rises linearly over the first epochs: in the e-th
    epoch of the main phase, counted from 1, it is min(e / warmup, 1).

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation" (arXiv:2203.08679), eq. (7); factors, defaults and
    warm-up as in the authors' mdistiller.

    Args:
        alpha: weight of TCKD, >= 0. Default 1.
        beta: weight of NCKD, >= 0. Default 8. The authors' on CIFAR-100: 2 (resnet56 -> 20, resnet110 -> 32), 6
            (WRN-40-2 -> 16-2 and 40-1, VGG13 -> VGG8, MobileNetV2), else 8.
        temperature: T > 0. Default 4 (CIFAR-100). ImageNet: 1, with beta 0.5 (ResNet-34 -> 18) or 2 (ResNet-50 ->
            MobileNetV1) and warmup 1.
        warmup: epochs until the term counts in full, a whole number; 0 = from the start. Default 20 (CIFAR-100).

    Raises:
        UserError: a setting out of range; both weights 0; no teacher, or one of another number of classes; two classes,
            one of which has no others to diverge from, and alpha 0.
    """

    def __init__(
        self, alpha: NotNegative = 1.0, beta: NotNegative = 8.0, temperature: Positive = 4.0, warmup: Whole = 20
    ):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        need_weight("dkd", alpha=self.alpha, beta=self.beta)
        self.temperature = temperature
        self.warmup = warmup
        self.begin_epoch(0, 1)

    def setup(self, task: Task) -> None:
        need_same_classes("dkd", task)
        if not self.alpha:
            need_classes("dkd", task, 3, "the divergence among the other classes (beta)")

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.factor = min((epoch + 1) / max(self.warmup, 1), 1.0)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        tckd, nckd = decoupled(student.logits, teacher.logits, batch.label, self.temperature)
        return self.factor * self.alpha * tckd + self.factor * self.beta * nckd
