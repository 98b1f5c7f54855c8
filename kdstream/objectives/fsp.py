"""FSP: how features flow from layer to layer, as the teacher's do (Yim et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives.common.checks import need_maps, need_teacher, tap_pairs
from kdstream.objectives.common.features import product, same_size
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Count, Milestones, Positive, Taps, Weights
from kdstream.objectives.common.tap_groups import has_groups
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Phase, Task, Term


class FlowOfSolution(Term):
    r"""Weighted sum of the squared differences of flow matrices of consecutive taps.

    .. math:: \sum_i W_i \, \mathrm{mean} \, (G^s_i - G^t_i)^2, \quad
              G_i = \frac{1}{HW} \sum_{hw} f_{i+1}(h, w) \, f_i(h, w)^\top

    Of two taps of different size the larger map is pooled to the smaller. In the form ``repdistiller`` that is the
    average, and the mean runs over N and the matrix's entries; in the form ``paper`` it is the maximum, and entries
    are summed. The term acts in the phase ``fsp.flow`` alone, where nothing else counts; its outer weight has no
    effect. The main phase has the recipe's other terms, plain KD in the papers. Largest tensors: [N,C_{i+1},C_i].

    Source: Yim et al. 2017 (CVPR, "A gift from knowledge distillation"), eqs. (1), (2). Defaults: Sarfraz et al.,
    "Knowledge Distillation Beyond Model Compression", Table I (W = [1, 3, 1] over blocks 1 to 3; then KD with
    alpha 0.9, T 4) and section III (the schedule). RepDistiller: W = [1, 1, 1], 30 epochs, rate 0.05 (0.01 for
    MobileNetV2 and ShuffleNets), no milestones.

    Args:
        taps: the student's feature maps, at least two, from shallow to deep. Default: the stem and
            all blocks that both networks have.
        teacher_taps: the teacher's, in the same order; the same names by default. Channels must agree.
        weights: W, one number >= 0 a pair of consecutive taps; by default (1, 3, 1) for three, 1 each for another
            number. A matrix of weight 0 is left out.
        form: ``repdistiller`` or ``paper``.
        epochs: length of the phase.
        lr: its learning rate, > 0.
        milestones: its epochs after which the rate is multiplied by ``gamma``, increasing.
        gamma: the factor, > 0.

    Raises:
        UserError: a setting out of range; no teacher; a tap that is no feature map; channels that differ.
    """

    in_main = False

    def __init__(
        self,
        taps: Taps = ("stem", "block*"),
        teacher_taps: Taps | None = None,
        weights: Weights | None = None,
        form: Literal["repdistiller", "paper"] = "repdistiller",
        epochs: Count = 100,
        lr: Positive = 0.001,
        milestones: Milestones = (60, 80),
        gamma: Positive = 0.1,
    ):
        super().__init__()
        self.student_taps, self.teacher_taps = tap_pairs("fsp", taps, teacher_taps)
        self.weights: Sequence[float] = weights or ()  # without taps by name, known in setup
        self._check_counts()
        self.form = form
        self.phase = Phase("fsp.flow", epochs, lr, tuple(milestones), gamma)

    def _check_counts(self) -> None:
        if has_groups(self.student_taps):
            return
        count = len(self.student_taps) - 1
        if count < 1:
            raise UserError(f"fsp: a flow matrix needs two taps, got {self.student_taps[0]} alone; name more in taps")
        if not self.weights:
            self.weights = (1.0, 3.0, 1.0) if count == 3 else (1.0,) * count
        if len(self.weights) != count:
            raise UserError(
                f"fsp: weights must be one a pair of consecutive taps, got {len(self.weights)} for {count} pairs"
            )

    def setup(self, task: Task) -> None:
        student, teacher = task.student_outputs, need_teacher("fsp", task)
        self._check_counts()
        for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True):
            need_maps("fsp", ours, theirs, student.features[ours], teacher.features[theirs])
            shapes = [list(maps.shape[1:]) for maps in (student.features[ours], teacher.features[theirs])]
            if shapes[0][0] != shapes[1][0]:
                raise UserError(
                    f"fsp: the student's {ours!r} {shapes[0]} and the teacher's {theirs!r} {shapes[1]} ([C,H,W]) "
                    "differ in channels, so their flow matrices cannot be compared; the paper has no result for such "
                    "pairs (its networks share their widths): choose a teacher of the student's widths or another "
                    "objective"
                )

    def phases(self) -> Sequence[Phase]:
        return (self.phase,)

    def flows(self, taps: Sequence[str], features: dict[str, Tensor]) -> list[Tensor]:
        """G of each pair of consecutive taps, [N,C_{i+1},C_i], at least float32."""
        pool = F.adaptive_avg_pool2d if self.form == "repdistiller" else F.adaptive_max_pool2d
        matrices = []
        for low, high in pairwise(at_least_float32(features[tap]) for tap in taps):
            low, high = (maps.flatten(2) for maps in same_size(low, high, pool))
            matrices.append(product(high, low.mT) / low.shape[2])
        return matrices

    def parts(self, student: Outputs, teacher: Outputs) -> list[Tensor]:
        """The unweighted summands, shallow to deep."""
        ours = self.flows(self.student_taps, student.features)
        theirs = self.flows(self.teacher_taps, teacher.features)
        squares = [(s - t).square() for s, t in zip(ours, theirs, strict=True)]
        if self.form == "repdistiller":
            return [square.mean() for square in squares]
        return [square.sum(dim=(1, 2)).mean() for square in squares]

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        parts = self.parts(student, teacher)
        return total(weight * part for weight, part in zip(self.weights, parts, strict=True) if weight > 0)
