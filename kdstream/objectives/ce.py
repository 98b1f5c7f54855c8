"""Cross-entropy on the labels: what a student learns without a teacher, and the first term of most losses."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.term import Task, Term


class CrossEntropy(Term):
    r"""Cross-entropy of the student on the labels at temperature 1, batch mean.

    .. math:: -\frac1N \sum_n \log \sigma(z_n)_{y_n}

    Source: the label term of Hinton et al. 2015 (arXiv:1503.02531) and of Salamah et al., "A coded knowledge
    distillation framework", eq. (1). No settings.
    """

    uses_teacher = False

    def setup(self, task: Task) -> None:
        need_classes("ce", task, 2, "a label to learn")

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        return F.cross_entropy(at_least_float32(student.logits), batch.target)
