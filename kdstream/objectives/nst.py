"""Neuron selectivity transfer: channels of both networks are active at the same places (Huang & Wang 2017)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_maps, need_positions, need_teacher, tap_pairs
from kdstream.objectives.common.features import product, same_size
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Taps
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Task, Term


def selectivity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Squared maximum mean discrepancy of the channels of two maps under the kernel (a . b)^2, mean over samples.

    The sum of the kernel over all channel pairs is an inner product of position Gram matrices [H*W,H*W],

    .. math:: \sum_{cc'} (a_c \cdot b_{c'})^2 = \langle A^\top A, B^\top B \rangle_F,

    so the discrepancy is taken there or among channels, whichever is smaller.

    Args:
        student: [N,C,H,W].
        teacher: [N,C',H',W']. Where sizes differ the larger map is average-pooled to the smaller.

    Returns:
        A scalar >= 0 up to rounding, at least float32. No tensor beside the maps is larger than
        N * min(H*W, max(C, C'))^2.
    """
    student, teacher = same_size(at_least_float32(student), at_least_float32(teacher))
    ours, theirs = (F.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))
    (c, positions), c_t = ours.shape[1:], theirs.shape[1]
    if positions <= max(c, c_t):
        difference = product(ours.mT, ours) / c - product(theirs.mT, theirs) / c_t
        return difference.square().sum(dim=(1, 2)).mean()
    within, between = [product(side, side.mT) for side in (ours, theirs)], product(ours, theirs.mT)
    return total(side.square().mean() for side in within) - 2 * between.square().mean()


class NeuronSelectivity(Term):
    r"""Sum over taps of the squared maximum mean discrepancy of the channels' spatial patterns.

    .. math:: \sum_j \overline{k(t, t)} + \overline{k(s, s)} - 2 \, \overline{k(s, t)}, \quad
              k(a, b) = \Big( \frac{a^\top b}{\lVert a \rVert \lVert b \rVert} \Big)^2

    a and b are channels flattened over positions; the bars are means over samples and channel pairs. No tensor beside
    the maps is larger than N * min(H*W, max(C, C'))^2: see :func:`selectivity_distance`.

    Source: Huang & Wang 2017 (arXiv:1707.01219), eq. (6) with the polynomial kernel d = 2, c = 0; with the constant
    teacher-teacher term, as in RepDistiller, whose outer weight is 50.

    Args:
        taps: the student's feature maps. Default ``block*``: all blocks that both networks have (RepDistiller).
        teacher_taps: the teacher's, in the same order; the same names by default.

    Raises:
        UserError: a setting out of range; no teacher; a tap that is no feature map [N,C,H,W], or one of a single
            position.
    """

    def __init__(self, taps: Taps = ("block*",), teacher_taps: Taps | None = None):
        super().__init__()
        self.student_taps, self.teacher_taps = tap_pairs("nst", taps, teacher_taps)

    def setup(self, task: Task) -> None:
        teacher = need_teacher("nst", task)
        for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True):
            pair = task.student_outputs.features[ours], teacher.features[theirs]
            need_maps("nst", ours, theirs, *pair)
            need_positions("nst", ours, theirs, *pair)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return total(
            selectivity_distance(student.features[ours], teacher.features[theirs])
            for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True)
        )
