"""DIST: correlation with the teacher's output over classes and over samples (Huang et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_classes, need_same_classes, need_samples, need_weight
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import NotNegative, Positive
from kdstream.objectives.term import Task, Term


def correlation(a: Tensor, b: Tensor, dim: int, eps: float) -> Tensor:
    """Pearson correlation along ``dim``; ``eps`` is added to the product of the two norms, so that a constant row has
    correlation 0."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + eps)


def correlation_distances(student: Tensor, teacher: Tensor, tau: float, eps: float) -> tuple[Tensor, Tensor]:
    r""":math:`\tau^2 (1 - \rho)` of the outputs softened with tau.

    Args:
        student: logits z, float [N,C].
        teacher: logits v, float [N,C].
        tau: temperature > 0.
        eps: see :func:`correlation`.

    Returns:
        inter (over a sample's classes, mean over samples) and intra (over a class's samples, mean over classes),
        scalars between 0 and 2 tau^2, float32 for half-precision logits.
    """
    q = torch.softmax(at_least_float32(student) / tau, dim=-1)
    p = torch.softmax(at_least_float32(teacher) / tau, dim=-1)
    inter, intra = (tau**2 * (1 - correlation(q, p, dim, eps).mean()) for dim in (1, 0))
    return inter, intra


class DIST(Term):
    r"""Distance by correlation between classes of a sample (inter) and samples of a class (intra).

    .. math:: \beta \tau^2 \Big(1 - \frac1N \sum_n \rho(q^\tau_{n\cdot}, p^\tau_{n\cdot})\Big)
              + \gamma \tau^2 \Big(1 - \frac1C \sum_c \rho(q^\tau_{\cdot c}, p^\tau_{\cdot c})\Big)

    Source: Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher" (arXiv:2205.10536). The factor tau^2
    and ``eps`` are those of the authors' classification code; the paper's equations have neither. The
    intra part runs over the whole batch, there over each process's own samples (``relations: local``). A correlation of
    two values is 1 or -1, whatever they are: with two classes the inter part is constant and the intra part alone
    teaches.

    Args:
        beta: weight of inter, >= 0. Default 1, as gamma: the authors', with outer weight 2 beside a cross-entropy of 1.
        gamma: weight of intra, >= 0.
        tau: temperature > 0. Default 4 (the authors' on CIFAR-100; on ImageNet 1).
        eps: keeps constant rows and columns finite, > 0.

    Raises:
        UserError: a setting out of range; both weights 0; no teacher, or one of another number of classes; two classes
            and gamma 0; fewer than three samples in a batch and gamma above 0.
    """

    over_batch = True

    def __init__(self, beta: NotNegative = 1.0, gamma: NotNegative = 1.0, tau: Positive = 4.0, eps: Positive = 1e-8):
        super().__init__()
        self.beta = beta
        self.gamma = gamma
        need_weight("dist", beta=self.beta, gamma=self.gamma)
        self.tau = tau
        self.eps = eps

    def setup(self, task: Task) -> None:
        need_same_classes("dist", task)
        if not self.gamma:
            need_classes("dist", task, 3, "the correlation over classes (beta)")
        else:
            cure = ", or set gamma: 0" if self.beta and task.student_outputs.logits.shape[-1] > 2 else ""
            need_samples("dist", task, 3, "the correlation over samples (gamma)", cure)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours, theirs = self.whole(student.logits, teacher.logits)
        inter, intra = correlation_distances(ours, theirs, self.tau, self.eps)
        return self.beta * inter + self.gamma * intra
