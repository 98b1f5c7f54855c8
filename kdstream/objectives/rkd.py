"""Relational knowledge distillation: distances and angles between samples (Park et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_samples, need_teacher, need_weight
from kdstream.objectives.common.features import product, tap_pair, vectors
from kdstream.objectives.common.settings import NotNegative, Positive, Tap
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Task, Term

MOST_ANGLES = 2**22
"""So many angles at most are held at a time (16 MiB in float32); a larger batch is computed in parts, again in the
backward pass."""


def gram(features: Tensor) -> Tensor:
    """Inner products of the samples after subtraction of the batch's mean, which no distance or angle sees but which
    keeps digits: [N,...] -> [N,N], at least float32."""
    flat = vectors(features)
    flat = flat - flat.mean(dim=0)
    return product(flat, flat.mT)


def squared_distances(inner: Tensor) -> Tensor:
    """Of all pairs, from their inner products: [N,N] -> [N,N] >= 0. What the rounding of the inner products hides is
    0, without gradient, so that equal samples have no angle instead of a random one."""
    norms = inner.diagonal()
    sums = norms[:, None] + norms
    squares = sums - 2 * inner
    return torch.where(squares > 16 * torch.finfo(inner.dtype).eps * sums, squares, 0)


def distances(inner: Tensor, eps: float) -> Tensor:
    """Distances in units of the mean positive one: [N,N] -> [N,N]. Squares are at least ``eps`` off the diagonal."""
    count = len(inner)
    diagonal = torch.eye(count, dtype=torch.bool, device=inner.device)
    values = squared_distances(inner).clamp(min=eps).sqrt().masked_fill(diagonal, 0)
    return values / (values.sum() / max(count * (count - 1), 1)).clamp(min=eps)


def inverse_distances(inner: Tensor) -> Tensor:
    """1 / distance of all pairs, 0 where that is 0: [N,N] -> [N,N]."""
    squares = squared_distances(inner)
    return torch.where(squares > 0, squares.masked_fill(squares == 0, 1).rsqrt(), 0)


def cosines(inner: Tensor, inverse: Tensor, start: int, stop: int) -> Tensor:
    """cos(f_j - f_i, f_k - f_i) at [i - start, j, k] for the corners i = start..stop-1: [stop-start,N,N]."""
    corner = inner[start:stop]
    sides = inner - corner[:, :, None] - corner[:, None, :] + inner.diagonal()[start:stop, None, None]
    return sides * inverse[start:stop, :, None] * inverse[start:stop, None, :]


def _angle_sum(ours: Tensor, our_inverse: Tensor, theirs: Tensor, their_inverse: Tensor, i: int, j: int) -> Tensor:
    return F.smooth_l1_loss(cosines(ours, our_inverse, i, j), cosines(theirs, their_inverse, i, j), reduction="sum")


class RelationalKD(Term):
    r"""Differences of the relations among samples: w_d times distances plus w_a times angles.

    .. math:: w_d \, \mathrm{mean}_{ij} \, \ell\Big(\frac{d^s_{ij}}{\bar d^s} - \frac{d^t_{ij}}{\bar d^t}\Big)
              + w_a \, \mathrm{mean}_{ijk} \, \ell\big(\cos^s_{ijk} - \cos^t_{ijk}\big), \quad
              \cos_{ijk} = \Big\langle \frac{f_j - f_i}{\lVert f_j - f_i \rVert},
              \frac{f_k - f_i}{\lVert f_k - f_i \rVert} \Big\rangle

    d is the Euclidean distance of two samples' flattened features f, d-bar its mean over the positive ones, l the
    smooth L1 function (quadratic below 1). The means run over all N^2 pairs and N^3 triples, those with equal members
    (0) included. RKD-D is ``w_a: 0``, RKD-A is ``w_d: 0``; a relation of weight 0 is not computed.

    Both come from the [N,N] inner products, so the memory beside the features is O(N^2) for distances and
    O(min(N^3, 2^22)) numbers a tensor for angles, whatever the features' size.

    Source: Park et al. 2019 (arXiv:1904.05068), eqs. (4) to (9); means over all tuples as in the authors' code and
    RepDistiller. Defaults: Sarfraz et al., "Knowledge Distillation Beyond Model Compression", Table I.

    Args:
        w_d: weight of the distances, >= 0. Default 25.
        w_a: weight of the angles, >= 0. Default 50.
        tap: the student's feature, of any shape. Default ``block3`` (RepDistiller: ``penultimate``).
        teacher_tap: the teacher's; the same name by default.
        eps: smallest squared distance of two samples, > 0.

    Raises:
        UserError: a setting out of range; both weights 0; no teacher; fewer than three samples in a batch, whose
            only distance is its own mean.
    """

    over_batch = True

    def __init__(
        self,
        w_d: NotNegative = 25.0,
        w_a: NotNegative = 50.0,
        tap: Tap = "block3",
        teacher_tap: Tap | None = None,
        eps: Positive = 1e-12,
    ):
        super().__init__()
        self.w_d = w_d
        self.w_a = w_a
        need_weight("rkd", w_d=self.w_d, w_a=self.w_a)
        self.student_taps, self.teacher_taps = tap_pair(tap, teacher_tap)
        self.eps = eps

    def setup(self, task: Task) -> None:
        need_teacher("rkd", task)
        need_samples("rkd", task, 3, "a relation that differs")

    def grams(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """The inner products [N,N] of the student's and of the teacher's samples."""
        ours, theirs = self.whole(student.features[self.student_taps[0]], teacher.features[self.teacher_taps[0]])
        return gram(ours), gram(theirs)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The first mean, unweighted, from inner products: [N,N], [N,N] -> scalar."""
        return F.smooth_l1_loss(distances(ours, self.eps), distances(theirs, self.eps))

    def angle(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """The second mean, unweighted, from inner products: [N,N], [N,N] -> scalar."""
        count = len(ours)
        relations = ours, inverse_distances(ours), theirs, inverse_distances(theirs)
        if count**3 <= MOST_ANGLES:
            return _angle_sum(*relations, 0, count) / count**3
        corners = max(MOST_ANGLES // count**2, 1)
        parts = [
            checkpoint(
                _angle_sum, *relations, i, min(i + corners, count), use_reentrant=False, preserve_rng_state=False
            )
            for i in range(0, count, corners)
        ]
        return torch.stack(parts).sum() / count**3

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours, theirs = self.grams(student, teacher)
        weighted = ((self.w_d, self.distance), (self.w_a, self.angle))
        return total(weight * relation(ours, theirs) for weight, relation in weighted if weight)
