"""Label smoothing: cross-entropy on labels that leave a share to every class (Szegedy et al. 2016)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Fraction
from kdstream.objectives.common.targets import negative_log_likelihood
from kdstream.objectives.term import Task, Term


def label_and_uniform(student: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the labels and on the uniform distribution over all C classes, batch means: logits [N,C],
    labels int64 [N] or their shares [N,C] -> two scalars >= 0."""
    log_q = F.log_softmax(at_least_float32(student), dim=1)
    return negative_log_likelihood(log_q, label), -log_q.mean()


class LabelSmoothing(Term):
    r"""Cross-entropy on the labels mixed with the uniform distribution; takes the place of ``ce``.

    .. math:: (1 - \epsilon) \, H(y, q) + \epsilon \, H(u, q), \quad u_c = 1/C

    Needs no teacher. Source: Szegedy et al. 2016 (arXiv:1512.00567), section 7; Zheng & Yang 2024 (arXiv:2402.11148),
    eq. (5).

    Args:
        epsilon: share of the uniform distribution, 0..1. Default 0.1 (Szegedy et al.); Zheng & Yang show 0.5 in their
            Fig. 3 (resnet20, CIFAR-100).

    Raises:
        UserError: epsilon out of range; a single class.
    """

    uses_teacher = False

    def __init__(self, epsilon: Fraction = 0.1):
        super().__init__()
        self.epsilon = epsilon

    def setup(self, task: Task) -> None:
        need_classes("label_smoothing", task, 2, "a label to learn")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        on_labels, on_uniform = label_and_uniform(student.logits, batch.target)
        return (1 - self.epsilon) * on_labels + self.epsilon * on_uniform
