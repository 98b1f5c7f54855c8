"""Information-theoretic representation distillation: correlation and mutual information (Miles et al. 2022)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives.common.checks import need_samples, need_teacher, need_weight
from kdstream.objectives.common.features import tap_pair
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import NotNegative, OneTap, real
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Task, Term

_TINY = 1e-12
"""Variances and traces below this count as 0: units and samples that are constant contribute no gradient."""


def standardise(features: Tensor) -> Tensor:
    """Every dimension with mean 0 and unbiased standard deviation 1 over the batch; one that is constant becomes 0.

    Args:
        features: float [N,D], N >= 1.
    """
    centred = features - features.mean(dim=0)
    variance = centred.square().sum(dim=0) / max(len(features) - 1, 1)
    return centred * variance.clamp(min=_TINY).rsqrt()


def correlation(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    r"""How far the dimensions are from being perfectly correlated.

    .. math:: \log_2 \sum_d |c_d - 1|^{2\alpha}, \quad c_d = \frac1N \sum_n \bar s_{nd} \bar t_{nd}

    Args:
        student: [N,D].
        teacher: [N,D].
        alpha: >= 0.5.

    Returns:
        A scalar in bits, negative when all correlations are high.
    """
    c = (standardise(student) * standardise(teacher)).mean(dim=0)
    return (c - 1).abs().pow(2 * alpha).sum().log2()


def mutual_information(student: Tensor, teacher: Tensor) -> Tensor:
    r"""What the student's similarities within the batch tell that those shared with the teacher do not.

    .. math:: \sum_{ij} \big(\bar G_s^2 - \bar G_{st}^2\big)_{ij}, \quad G_{st} = G_s \circ G_t, \quad
              \bar G = G / \mathrm{tr}\, G

    with Gram matrices G of unit rows.

    Args:
        student: [N,D].
        teacher: [N,D'].
    """
    ours, theirs = (F.normalize(features, dim=1) for features in (student, teacher))
    gram = ours @ ours.T
    joint = gram * (theirs @ theirs.T)
    own, shared = ((matrix / matrix.trace().clamp(min=_TINY)).square().sum() for matrix in (gram, joint))
    return own - shared


class ITRD(Term):
    r"""Weighted sum of a correlation and a mutual-information loss between penultimate features.

    .. math:: \beta_{corr} L_{corr}(e(s), t) + \beta_{mi} L_{mi}(s, t)

    e is a trained linear layer to the teacher's width (``embed.linear``); L_mi sees e(s) where the widths differ and s
    itself where they agree. Statistics are those of the batch.

    Source: Miles et al. 2022 (arXiv:2112.00459), in the form of the authors' code (correlations divided by N though
    deviations are unbiased; no logarithm in L_mi); Zheng & Yang 2024, eq. (24). Outer weight 1 (there, A.5).

    Args:
        alpha_it: exponent alpha >= 0.5. Default 1.5, for student and teacher of different architectures; 1.01 for the
            same (Zheng & Yang 2024, A.5).
        beta_corr: weight >= 0. Default 2 (there).
        beta_mi: weight >= 0. Default 1 (there; 0 for three pairs). A part of weight 0 is not computed.
        taps: the student's feature, flattened to [N,D].
        teacher_taps: the teacher's; the same name by default.

    Raises:
        UserError: a setting out of range; no teacher; fewer than three samples in a batch and beta_corr above 0, or
            one and beta_mi above 0; a feature of one number and beta_mi above 0.
    """

    over_batch = True

    def __init__(
        self,
        alpha_it: Annotated[float, real(at_least=0.5)] = 1.5,
        beta_corr: NotNegative = 2.0,
        beta_mi: NotNegative = 1.0,
        taps: OneTap = "penultimate",
        teacher_taps: OneTap | None = None,
    ):
        super().__init__()
        self.alpha_it = alpha_it
        self.beta_corr = beta_corr
        self.beta_mi = beta_mi
        need_weight("itrd", beta_corr=self.beta_corr, beta_mi=self.beta_mi)
        self.student_taps, self.teacher_taps = tap_pair(taps, teacher_taps)

    def setup(self, task: Task) -> None:
        ours = task.student_outputs.features[self.student_taps[0]][0].numel()
        theirs = need_teacher("itrd", task).features[self.teacher_taps[0]][0].numel()
        if self.beta_corr:
            cure = ", or set beta_corr: 0" if self.beta_mi else ""
            need_samples("itrd", task, 3, "the correlation over samples (beta_corr)", cure)
        if self.beta_mi:
            need_samples("itrd", task, 2, "a similarity")
            if theirs < 2:
                raise UserError("itrd: the teacher's feature is one number, which has no angle: set beta_mi: 0")
        self.same_width = ours == theirs
        self.embed = nn.ModuleDict({"linear": nn.Linear(ours, theirs)})

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        parts = ((self.beta_corr, self.correlation), (self.beta_mi, self.mutual_information))
        return total(weight * part(student, teacher) for weight, part in parts if weight)

    def correlation(self, student: Outputs, teacher: Outputs) -> Tensor:
        """L_corr, unweighted."""
        ours, theirs = self._features(student, teacher, embed=True)
        return correlation(ours, theirs, self.alpha_it)

    def mutual_information(self, student: Outputs, teacher: Outputs) -> Tensor:
        """L_mi, unweighted."""
        ours, theirs = self._features(student, teacher, embed=not self.same_width)
        with torch.autocast(ours.device.type, enabled=False):
            return mutual_information(ours, theirs)

    def _features(self, student: Outputs, teacher: Outputs, embed: bool) -> tuple[Tensor, Tensor]:
        ours = at_least_float32(student.features[self.student_taps[0]]).flatten(1)
        theirs = at_least_float32(teacher.features[self.teacher_taps[0]]).flatten(1)
        # Nearly equal numbers are compared: half precision would not see the difference.
        with torch.autocast(ours.device.type, enabled=False):
            ours, theirs = self.whole(self.embed["linear"](ours) if embed else ours, theirs)
            return ours, theirs
