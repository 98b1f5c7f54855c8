"""Curriculum temperature: KD whose temperature learns to make it harder, more and more so (Li et al. 2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.exact import exact
from kdstream.objectives.common.checks import need_same_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Count, NotNegative, Positive
from kdstream.objectives.kd import softened_kl
from kdstream.objectives.term import Task, Term


class ReversedGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -strength on its way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reversal(epoch: int, ramp: int, lowest: float, highest: float) -> float:
    """Lambda: from ``lowest`` (epoch 0) to ``highest`` (epoch ``ramp`` and later) along half a cosine."""
    return lowest + (highest - lowest) * (1 - math.cos(math.pi * min(epoch, ramp) / ramp)) / 2


def tempered_kd(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    r""":math:`\tau^2 \, \mathrm{KL}`, differentiable in tau as well.

    The derivative by tau is a small difference of large terms (tau^2 rises, the divergence falls), of which float32
    leaves three to four digits at tau = 15: it runs in float64.

    Args:
        student: logits z, float [N,C].
        teacher: logits v, float [N,C].
        temperature: tau > 0, a scalar.

    Returns:
        A scalar >= 0, batch mean, float32 for half-precision logits.
    """
    wide = exact(temperature)
    return (wide**2 * softened_kl(exact(student), exact(teacher), wide)).to(at_least_float32(student))


class CurriculumTemperature(Term):
    r"""KD at a learned temperature, which is trained against the student.

    .. math:: \tau^2 \frac1N \sum_n \mathrm{KL}(p^\tau_n \,\|\, q^\tau_n), \quad
              \tau = t_0 + t_1\,\mathrm{sigmoid}(\theta)

    The student minimises this; theta (``global_T``, trained beside it with the same optimizer settings, weight decay
    included, as the authors do) receives the gradient times -lambda and maximises it. In the e-th epoch of the main
    phase, counted from 1, lambda is :func:`reversal` of e: the task starts easy and gets harder.

    Source: Li et al. 2023, "Curriculum Temperature for Knowledge Distillation" (arXiv:2211.16231), global form; the
    values are the authors' code's, where weights 0.9 for this and 0.1 for a cross-entropy go with them.

    Args:
        t_start: t_0 > 0, below every temperature. Default 1.
        t_range: t_1 > 0: temperatures lie between t_0 and t_0 + t_1. Default 20 (the authors' ``t_end``).
        lambda_min: lambda before the first epoch, >= 0. Default 0.
        lambda_max: lambda at the end of the ramp, >= lambda_min. Default 1.
        ramp: its length in epochs, >= 1. Default 10 (CIFAR-100; ImageNet 5).

    Raises:
        UserError: a setting out of range; no teacher, or one of another number of classes.
    """

    def __init__(
        self,
        t_start: Positive = 1.0,
        t_range: Positive = 20.0,
        lambda_min: NotNegative = 0.0,
        lambda_max: NotNegative = 1.0,
        ramp: Count = 10,
    ):
        super().__init__()
        self.t_start = t_start
        self.t_range = t_range
        self.lambda_min = lambda_min
        self.lambda_max = lambda_max
        if self.lambda_max < self.lambda_min:
            raise UserError(f"ctkd: lambda_max {lambda_max:g} is below lambda_min {lambda_min:g}; the schedule rises")
        self.ramp = ramp
        self.global_T = nn.Parameter(torch.ones(1))
        self.begin_epoch(0, 1)

    def setup(self, task: Task) -> None:
        need_same_classes("ctkd", task)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        self.strength = reversal(epoch + 1, self.ramp, self.lambda_min, self.lambda_max)

    def temperature(self) -> Tensor:
        """tau, [1], with the reversed gradient to theta."""
        return self.t_start + self.t_range * ReversedGradient.apply(self.global_T, self.strength).sigmoid()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return tempered_kd(student.logits, teacher.logits, self.temperature().squeeze())
