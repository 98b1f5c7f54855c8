"""Knowledge distillation by softened outputs (Hinton et al. 2015)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_same_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Positive
from kdstream.objectives.term import Task, Term


def softened_kl(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """Batch mean of KL(p^T || q^T) in nats: logits z [N,C], v [N,C] and T > 0 (a scalar tensor gets its gradient) -> a
    scalar >= 0, at least float32. Both sides stay logarithms, so that no probability underflows."""
    log_q = F.log_softmax(at_least_float32(student) / temperature, dim=-1)
    log_p = F.log_softmax(at_least_float32(teacher) / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


class KnowledgeDistillation(Term):
    r"""T^2 times the divergence of the student's softened output from the (coded) teacher's.

    .. math:: T^2 \, \frac1N \sum_n \mathrm{KL}\big(\sigma(v_n/T) \,\|\, \sigma(z_n/T)\big)

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2; Salamah et al., "A coded knowledge distillation
    framework", eq. (1), (2), where the outer weight is alpha and labels weigh 1 - alpha.

    Args:
        temperature: T > 0. Default 4: Sarfraz et al., "Knowledge Distillation Beyond Model Compression", Table I
            (there with outer weight 0.9); Zheng & Yang 2024, "Knowledge Distillation Based on Transformed Teacher
            Matching", Fig. 1. On ImageNet subsets Salamah et al. use 2 and 3 with outer weight 0.5 (appendix B).

    Raises:
        UserError: temperature out of range; no teacher, or one of another number of classes.
    """

    def __init__(self, temperature: Positive = 4.0):
        super().__init__()
        self.temperature = temperature

    def setup(self, task: Task) -> None:
        need_same_classes("kd", task)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return self.temperature**2 * softened_kl(student.logits, teacher.logits, self.temperature)
