"""FitNet hints: the student's middle layer learns to predict the teacher's (Romero et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_maps, need_teacher, tap_pairs
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.regressor import ConvRegressor
from kdstream.objectives.common.settings import Blocks, Count, Milestones, Positive, Taps, Weights, module_name, whole
from kdstream.objectives.common.tap_groups import need_one_a_tap
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Phase, Task, Term


class FitNet(Term):
    r"""Weighted sum over taps of the mean squared error of a regressor from the student's map to the teacher's.

    .. math:: \sum_i W_i \, \mathrm{mean}\big(r_i(s_i) - t_i\big)^2

    The regressors r (convolution, BatchNorm, ReLU: :class:`~kdstream.objectives.common.regressor.ConvRegressor`) are
    trained beside the student as ``connector.<tap>``. The mean runs over N, C, H and W.

    Source: Romero et al. 2015 (arXiv:1412.6550), eq. (3), which prints half the sum of squares; the mean is that of
    RepDistiller, whose outer weight in one stage is 100. Defaults: Sarfraz et al., "Knowledge Distillation Beyond
    Model Compression", Table I (W = [0, 1, 0] over blocks 1 to 3: block 2 alone) and section III (the schedule).

    Args:
        taps: the student's feature maps (hints are taken there).
        teacher_taps: the teacher's, in the same order; the same names by default.
        weights: W, one number >= 0 a tap; 1 each by default. A tap of weight 0 is left out of loss and training.
        stages: 1 = the term acts in the main phase, beside the others. 2 = the papers' form: a phase
            ``fitnet.hint`` that minimises this term alone comes first, and the term is absent from the main phase
            (there the recipe's other terms act, plain KD in the papers).
        epochs: length of the hint phase. This and the next three matter for ``stages: 2`` only.
        lr: its learning rate, > 0.
        milestones: its epochs after which the rate is multiplied by ``gamma``, increasing.
        gamma: the factor, > 0.

    Raises:
        UserError: a setting out of range; no teacher; a tap that is no feature map; sizes that no regressor joins.
    """

    def __init__(
        self,
        taps: Blocks = ("block2",),
        teacher_taps: Taps | None = None,
        weights: Weights | None = None,
        stages: Annotated[int, whole(1, at_most=2)] = 1,
        epochs: Count = 100,
        lr: Positive = 0.001,
        milestones: Milestones = (60, 80),
        gamma: Positive = 0.1,
    ):
        super().__init__()
        self.student_taps, self.teacher_taps = tap_pairs("fitnet", taps, teacher_taps)
        self.weights: Sequence[float] = weights or ()  # without taps by name, known in setup
        if weights is not None:
            need_one_a_tap("fitnet", "weights", weights, self.student_taps)
        self.stages = stages
        self.epochs = epochs
        self.lr = lr
        self.milestones = tuple(milestones)
        self.gamma = gamma
        self.in_main = self.stages == 1

    def setup(self, task: Task) -> None:
        student, teacher = task.student_outputs, need_teacher("fitnet", task)
        if not self.weights:
            self.weights = (1.0,) * len(self.student_taps)
        need_one_a_tap("fitnet", "weights", self.weights, self.student_taps)
        self.connector = nn.ModuleDict()
        for ours, theirs, weight in zip(self.student_taps, self.teacher_taps, self.weights, strict=True):
            need_maps("fitnet", ours, theirs, student.features[ours], teacher.features[theirs])
            regressor = ConvRegressor("fitnet", ours, student.features[ours], teacher.features[theirs])
            self.connector[module_name(ours)] = regressor.requires_grad_(weight > 0)

    def phases(self) -> Sequence[Phase]:
        if self.stages == 1:
            return ()
        return (Phase("fitnet.hint", self.epochs, self.lr, self.milestones, self.gamma),)

    def hint_distance(self, tap: str, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared error of ``tap``'s regressor, unweighted: [N,C,H,W], [N,C',H',W'] -> scalar."""
        predicted = self.connector[module_name(tap)](at_least_float32(student))
        return F.mse_loss(at_least_float32(predicted), at_least_float32(teacher))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        # A tap of weight 0 must not be multiplied by 0: its layers would still be reached, and weight decay would
        # shrink them although nothing trains them.
        return total(
            weight * self.hint_distance(ours, student.features[ours], teacher.features[theirs])
            for ours, theirs, weight in zip(self.student_taps, self.teacher_taps, self.weights, strict=True)
            if weight > 0
        )
