"""Activation boundaries: the student's neurons fire where the teacher's do (Heo et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_maps, need_teacher, tap_pairs
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.regressor import ConvRegressor
from kdstream.objectives.common.settings import Blocks, Count, Milestones, Positive, Taps, Weights, module_name
from kdstream.objectives.common.tap_groups import need_one_a_tap
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Phase, Task, Term


def boundary_distance(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    """How far the student's neurons are on the wrong side of their boundary: squared, summed, mean over samples.

    Args:
        student: before its activation, [N,C,H,W].
        teacher: before its activation, [N,C,H,W].
        margin: > 0, by which a neuron should be active (teacher > 0) or not (teacher <= 0).

    Returns:
        A scalar >= 0, at least float32.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    wanted = torch.where(teacher > 0, student, -student)
    return F.relu(margin - wanted).square().flatten(1).sum(dim=1).mean()


class ActivationBoundary(Term):
    r"""Weighted sum over taps of a hinge loss on the sign of the teacher's pre-activations.

    .. math:: c \sum_i w_i \, \frac1N \sum \begin{cases} [m - s]_+^2 & t > 0 \\ [m + s]_+^2 & t \le 0 \end{cases},
              \quad w_i = 2^{i-n+1}, \quad c = 3/1000

    The inner sum runs over N, C, H and W; s has passed its connector (convolution and BatchNorm, trained beside the
    student as ``connector.<tap>``; none where shapes agree), i counts the n taps from 0. The term acts in the phase
    ``ab.boundary`` alone, where nothing else counts; its outer weight has no effect. The main phase has the recipe's
    other terms (the authors: KD with T = 3; RepDistiller: labels), without connectors.

    Source: Heo et al. 2019 (arXiv:1811.03233), eqs. (5), (7); factors and margin of the authors' code. Connectors
    (with bias) and schedule are RepDistiller's, which takes a rate of 0.01 for MobileNetV2 and ShuffleNets. It keeps
    both networks in eval mode in the phase; here the student trains as always.

    Args:
        taps: the student's maps before their activation. Default ``block*.pre``: all blocks that both networks have
            (RepDistiller; the outputs of MobileNetV2's linear bottlenecks stand for what precedes a ReLU).
        teacher_taps: the teacher's, in the same order; the same names by default.
        margin: m > 0.
        weights: w, one number >= 0 a tap; the default above doubles from tap to tap and ends in 1. A tap of weight 0
            is left out of loss and training.
        scale: c > 0.
        epochs: length of the phase.
        lr: its learning rate, > 0.
        milestones: its epochs after which the rate is multiplied by ``gamma``, increasing.
        gamma: the factor, > 0.

    Raises:
        UserError: a setting out of range; no teacher; a tap that is no feature map; sizes that no connector joins.
    """

    in_main = False

    def __init__(
        self,
        taps: Blocks = ("block*.pre",),
        teacher_taps: Taps | None = None,
        margin: Positive = 1.0,
        weights: Weights | None = None,
        scale: Positive = 0.003,
        epochs: Count = 30,
        lr: Positive = 0.05,
        milestones: Milestones = (),
        gamma: Positive = 0.1,
    ):
        super().__init__()
        self.student_taps, self.teacher_taps = tap_pairs("ab", taps, teacher_taps)
        self.margin = margin
        self.scale = scale
        self.weights: Sequence[float] = weights or ()  # without taps by name, known in setup
        if weights is not None:
            need_one_a_tap("ab", "weights", weights, self.student_taps)
        self.phase = Phase("ab.boundary", epochs, lr, tuple(milestones), gamma)

    def setup(self, task: Task) -> None:
        student, teacher = task.student_outputs, need_teacher("ab", task)
        count = len(self.student_taps)
        if not self.weights:
            self.weights = [2.0 ** (i - count + 1) for i in range(count)]
        need_one_a_tap("ab", "weights", self.weights, self.student_taps)
        self.connector = nn.ModuleDict()
        for ours, theirs, weight in zip(self.student_taps, self.teacher_taps, self.weights, strict=True):
            pair = student.features[ours], teacher.features[theirs]
            need_maps("ab", ours, theirs, *pair)
            if pair[0].shape != pair[1].shape:
                connector = ConvRegressor("ab", ours, *pair, relu=False)
                self.connector[module_name(ours)] = connector.requires_grad_(weight > 0)

    def phases(self) -> Sequence[Phase]:
        return (self.phase,)

    def boundary(self, tap: str, student: Tensor, teacher: Tensor) -> Tensor:
        """The summand of the student's ``tap``, without weight and scale: [N,C,H,W], [N,C',H',W'] -> scalar."""
        name = module_name(tap)
        mapped = self.connector[name](at_least_float32(student)) if name in self.connector else student
        return boundary_distance(mapped, teacher, self.margin)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return self.scale * total(
            weight * self.boundary(ours, student.features[ours], teacher.features[theirs])
            for ours, theirs, weight in zip(self.student_taps, self.teacher_taps, self.weights, strict=True)
            if weight > 0
        )
