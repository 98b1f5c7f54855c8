"""Logit matching: squared difference of the logits (Buciluă et al. 2006)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_same_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.term import Task, Term


def logit_distance(student: Tensor, teacher: Tensor, classes: str = "mean") -> Tensor:
    """Squared difference of the logits, batch mean.

    Args:
        student: logits z, float [N,C].
        teacher: logits v, float [N,C].
        classes: "mean" or "sum" over them; the sum is C times the mean.

    Returns:
        A scalar >= 0, float32 for half-precision logits.
    """
    value = F.mse_loss(at_least_float32(student), at_least_float32(teacher))
    return value * student.shape[-1] if classes == "sum" else value


class LogitMatching(Term):
    r"""Mean squared difference between the student's and the teacher's logits.

    .. math:: \frac1{NC} \sum_{n,c} (z_{nc} - v_{nc})^2

    Source: Buciluă et al. 2006, "Model Compression"; "Knowledge distillation under ideal joint classifier assumption",
    algorithms 1 and 3 (outer weight 1). That paper's formula is a squared norm, a sum over classes; its algorithms
    take the mean over all entries, which is the default here.

    Args:
        classes: "mean" over them (the algorithms) or "sum" (the formula, C times larger).

    Raises:
        UserError: another value of ``classes``; no teacher, or one of another number of classes.
    """

    def __init__(self, classes: Literal["mean", "sum"] = "mean"):
        super().__init__()
        self.classes = classes

    def setup(self, task: Task) -> None:
        need_same_classes("logit_mse", task)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return logit_distance(student.logits, teacher.logits, self.classes)
