"""Rényi regulariser: what transformed teacher matching adds to KD, and Rényi entropy (Zheng & Yang 2024)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.exact import exact
from kdstream.objectives.common.checks import need_same_classes
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Positive, Probability, checked
from kdstream.objectives.term import Task, Term
from kdstream.objectives.ttm import transformed_kl


def renyi_entropy(logits: Tensor, order: float) -> Tensor:
    r"""Rényi entropy of q = softmax(logits), :math:`H_a(q) = \frac1{1-a} \log \sum_c q_c^a` (eq. (4)).

    Args:
        logits: float [N,C].
        order: a > 0; 1 is the limit, the Shannon entropy.

    Returns:
        [N], in nats, between 0 and log C, smaller for a larger order; float32 for half-precision logits.

    Raises:
        UserError: order out of range.
    """
    order = checked("renyi", "order", order, Positive)
    log_q = F.log_softmax(at_least_float32(logits), dim=-1)
    if order == 1:
        return -(log_q.exp() * log_q).sum(dim=-1)
    return torch.logsumexp(order * log_q, dim=-1) / (1 - order)


class Decomposition(NamedTuple):
    """The parts of identity (15), each float64 [N], in nats.

    Attributes:
        ttm: D(p_T || q), what transformed teacher matching minimises (left side).
        kd: D(p_T || q_T), what KD minimises, without the factor T^2.
        renyi: H_{1/T}(q), the student's Rényi entropy, which matching raises beside KD.
        shannon_teacher: H(p_T), constant for the student.
        total: T kd - (T-1) renyi + (T-1) shannon_teacher (right side), equal to ``ttm``.
    """

    ttm: Tensor
    kd: Tensor
    renyi: Tensor
    shannon_teacher: Tensor
    total: Tensor


def decompose(student: Tensor, teacher: Tensor, temperature: float) -> Decomposition:
    r"""Transformed teacher matching as KD plus Rényi entropy, sample by sample.

    .. math:: D(p_T \| q) = T D(p_T \| q_T) - (T-1) H_{1/T}(q) + (T-1) H(p_T)

    Source: Zheng & Yang 2024 (arXiv:2402.11148), eq. (13) to (15). In float64, since the right side is a small
    difference of large terms.

    Args:
        student: logits z, float [N,C].
        teacher: logits v, float [N,C].
        temperature: T > 0.
    """
    student, teacher = exact(student), exact(teacher)
    temperature = checked("renyi", "temperature", temperature, Positive)
    kd = transformed_kl(student / temperature, teacher, 1 / temperature)
    renyi = renyi_entropy(student, 1 / temperature)
    shannon = renyi_entropy(teacher / temperature, 1)
    total = temperature * kd + (temperature - 1) * (shannon - renyi)
    return Decomposition(transformed_kl(student, teacher, 1 / temperature), kd, renyi, shannon, total)


def matching_weight(temperature: float, kd_weight: float) -> float:
    """The outer weight beta of matching, beside a cross-entropy of weight 1, that corresponds to KD's lambda.

    Source: eq. (19), beta = lambda T / (1 - lambda); T = 4 and lambda = 0.9 give 36.

    Raises:
        UserError: temperature <= 0, or a weight outside of 0 <= lambda < 1.
    """
    kd_weight = checked("renyi", "kd_weight", kd_weight, Probability)
    return kd_weight * checked("renyi", "temperature", temperature, Positive) / (1 - kd_weight)


class RenyiRegularisedKD(Term):
    r"""KD with the Rényi entropy that transformed teacher matching adds to it, in KD's own notation.

    .. math:: \frac1N \sum_n \big( T D(p_T \| q_T) - (T-1) H_{1/T}(q) + (T-1) H(p_T) \big) = \frac1N \sum_n D(p_T \| q)

    By identity (15) it is ``ttm`` with gamma = 1/T, and is computed as such, where nothing cancels; :func:`decompose`
    gives the parts and :func:`matching_weight` the outer weight that corresponds to KD's lambda. Reads no labels.

    Source: Zheng & Yang 2024, "Knowledge Distillation Based on Transformed Teacher Matching" (arXiv:2402.11148).

    Args:
        temperature: T > 0. Default 4 (Fig. 1 there, with outer weight 36).

    Raises:
        UserError: temperature out of range; no teacher, or one of another number of classes.
    """

    def __init__(self, temperature: Positive = 4.0):
        super().__init__()
        self.temperature = temperature

    def setup(self, task: Task) -> None:
        need_same_classes("renyi", task)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return transformed_kl(student.logits, teacher.logits, 1 / self.temperature).mean()
