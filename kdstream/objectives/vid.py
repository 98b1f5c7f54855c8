"""Variational information distillation: the student's map predicts the teacher's as a Gaussian (Ahn et al. 2019)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives.common.checks import need_maps, need_teacher, tap_pairs
from kdstream.objectives.common.features import same_size
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Blocks, Positive, Taps, module_name
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Task, Term


class Gaussian(nn.Module):
    """The mean (three 1x1 convolutions without bias, ReLU between) and the variance of each teacher channel.

    Args:
        student, teacher: channels.
        variance: at the start, > ``eps``.
        eps: added to the variance.
    """

    def __init__(self, student: int, teacher: int, variance: float, eps: float):
        super().__init__()
        self.conv1 = nn.Conv2d(student, teacher, 1, bias=False)
        self.conv2 = nn.Conv2d(teacher, teacher, 1, bias=False)
        self.conv3 = nn.Conv2d(teacher, teacher, 1, bias=False)
        softplus = variance - eps
        self.log_scale = nn.Parameter(torch.full((teacher,), softplus + math.log(-math.expm1(-softplus))))
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats without its constant log(2 pi)/2 (so it may be < 0): [N,C,H,W],
        [N,C',H',W'] -> scalar. Where sizes differ the larger map is average-pooled."""
        student, teacher = same_size(at_least_float32(student), at_least_float32(teacher))
        mean = at_least_float32(self.conv3(F.relu(self.conv2(F.relu(self.conv1(student))))))
        variance = (F.softplus(at_least_float32(self.log_scale)) + self.eps)[:, None, None]
        return 0.5 * ((mean - teacher).square() / variance + variance.log()).mean()


class VariationalInformation(Term):
    r"""Sum over taps of the negative log-likelihood of the teacher's map given the student's.

    .. math:: \sum_j \mathrm{mean}\; \tfrac12 \Big[ \frac{(\mu_j(s_j) - t_j)^2}{\sigma_c^2} + \log \sigma_c^2 \Big],
              \quad \sigma_c^2 = \log(1 + e^{\alpha_c}) + \epsilon

    The means (convolutions) and the variance of each teacher channel c are trained beside the student as
    ``vid.<tap>``. Where sizes differ the larger of student's input and teacher's map is average-pooled to the smaller.

    Source: Ahn et al. 2019 (arXiv:1904.05835), eqs. (4) to (6), which sum over positions and channels; the mean is
    RepDistiller's, whose outer weight is 1.

    Args:
        taps: the student's feature maps. Default ``block*``: all blocks that both networks have (RepDistiller).
        teacher_taps: the teacher's, in the same order; the same names by default.
        init_pred_var: variance at the start, > ``eps``. Default 5 (RepDistiller).
        eps: smallest variance, > 0. Default 1e-5 (RepDistiller).

    Raises:
        UserError: a setting out of range; no teacher; a tap that is no feature map [N,C,H,W].
    """

    def __init__(
        self,
        taps: Blocks = ("block*",),
        teacher_taps: Taps | None = None,
        init_pred_var: Positive = 5.0,
        eps: Positive = 1e-5,
    ):
        super().__init__()
        self.student_taps, self.teacher_taps = tap_pairs("vid", taps, teacher_taps)
        self.eps = eps
        if init_pred_var <= eps:
            raise UserError(f"vid: init_pred_var must be a finite number > {eps:g}, got {init_pred_var:g}")
        self.init_pred_var = init_pred_var

    def setup(self, task: Task) -> None:
        student, teacher = task.student_outputs, need_teacher("vid", task)
        self.vid = nn.ModuleDict()
        for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True):
            pair = student.features[ours], teacher.features[theirs]
            need_maps("vid", ours, theirs, *pair)
            inputs, outputs = (maps.shape[1] for maps in pair)
            self.vid[module_name(ours)] = Gaussian(inputs, outputs, self.init_pred_var, self.eps)

    def likelihood(self, tap: str, student: Tensor, teacher: Tensor) -> Tensor:
        """The summand of the student's ``tap``: [N,C,H,W], [N,C',H',W'] -> scalar."""
        return self.vid[module_name(tap)](student, teacher)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return total(
            self.likelihood(ours, student.features[ours], teacher.features[theirs])
            for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True)
        )
