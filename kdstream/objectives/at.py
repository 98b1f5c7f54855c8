"""Attention transfer: the student looks where the teacher looks (Zagoruyko & Komodakis 2017)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_maps, need_positions, need_teacher, tap_pairs
from kdstream.objectives.common.features import same_size
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Count, Taps
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Task, Term


def attention(maps: Tensor, p: int) -> Tensor:
    """Where a layer is active: the channel mean of the p-th power, of unit length.

    Args:
        maps: float [N,C,H,W]. The power keeps the sign: an odd ``p`` on signed maps is not the power of |maps|.
        p: whole number >= 1.

    Returns:
        [N,H*W], each row of L2 norm 1 (a row of zeros stays zero).
    """
    return F.normalize(maps.pow(p).mean(dim=1).flatten(1), dim=1)


def attention_distance(student: Tensor, teacher: Tensor, p: int) -> Tensor:
    """Mean squared difference of two attention vectors, over samples and positions.

    Args:
        student: [N,C,H,W].
        teacher: [N,C',H',W']. Where sizes differ the larger map is average-pooled to the smaller, before the power.
        p: see :func:`attention`.

    Returns:
        A scalar in 0..4/(H*W), float32 for half-precision maps.
    """
    student, teacher = same_size(at_least_float32(student), at_least_float32(teacher))
    return F.mse_loss(attention(student, p), attention(teacher, p))


class AttentionTransfer(Term):
    r"""Sum over taps of the mean squared difference of normalised attention maps.

    .. math:: \sum_j \mathrm{mean}\big(\hat Q(s_j) - \hat Q(t_j)\big)^2, \quad
              Q(A) = \mathrm{vec}\,\mathrm{mean}_c A^p, \quad \hat Q = Q / \lVert Q \rVert_2

    Source: Zagoruyko & Komodakis 2017 (arXiv:1612.03928), section 3.1. Eq. (2) there prints an unsquared norm; this
    is the squared mean of the authors' code and of RepDistiller, which goes with their outer weight 1000 (Sarfraz
    et al., "Knowledge Distillation Beyond Model Compression", Table I; Salamah et al., "A coded knowledge
    distillation framework", section 5.3).

    Args:
        p: power, a whole number >= 1. Default 2, as in the sources above.
        taps: the student's feature maps. Default ``block*``: all blocks that both networks have (blocks 1 to 3 of
            CIFAR ResNets and WRNs, as in Sarfraz et al., Table I; RepDistiller).
        teacher_taps: the teacher's, in the same order; the same names by default.

    Raises:
        UserError: a setting out of range; no teacher; a tap that is no feature map [N,C,H,W], or one of a single
            position.
    """

    def __init__(
        self,
        p: Count = 2,
        taps: Taps = ("block*",),
        teacher_taps: Taps | None = None,
    ):
        super().__init__()
        self.p = p
        self.student_taps, self.teacher_taps = tap_pairs("at", taps, teacher_taps)

    def setup(self, task: Task) -> None:
        teacher = need_teacher("at", task)
        for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True):
            pair = task.student_outputs.features[ours], teacher.features[theirs]
            need_maps("at", ours, theirs, *pair)
            need_positions("at", ours, theirs, *pair)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return total(
            attention_distance(student.features[ours], teacher.features[theirs], self.p)
            for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True)
        )
