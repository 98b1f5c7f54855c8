"""Confidence penalty: cross-entropy less a share of the output's entropy (Pereyra et al. 2017)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import NotNegative
from kdstream.objectives.common.targets import negative_log_likelihood
from kdstream.objectives.term import Task, Term


def label_loss_and_entropy(student: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the labels and Shannon entropy of the output, batch means: logits [N,C], labels int64 [N] or
    their shares [N,C] -> two scalars >= 0 in nats."""
    log_q = F.log_softmax(at_least_float32(student), dim=1)
    return negative_log_likelihood(log_q, label), -(log_q.exp() * log_q).sum(dim=1).mean()


class ConfidencePenalty(Term):
    r"""Cross-entropy on the labels that rewards an output of high entropy; takes the place of ``ce``.

    .. math:: H(y, q) - \eta \, H(q)

    Needs no teacher. May be negative where eta > 0. Source: Pereyra et al. 2017 (arXiv:1701.06548); Zheng & Yang 2024
    (arXiv:2402.11148), eq. (3).

    Args:
        eta: weight of the entropy, >= 0. Default 0.1, a mild penalty of this project's choice: Zheng & Yang give none.

    Raises:
        UserError: eta out of range; a single class.
    """

    uses_teacher = False

    def __init__(self, eta: NotNegative = 0.1):
        super().__init__()
        self.eta = eta

    def setup(self, task: Task) -> None:
        need_classes("confidence_penalty", task, 2, "a label to learn")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        on_labels, entropy = label_loss_and_entropy(student.logits, batch.target)
        return on_labels - self.eta * entropy
