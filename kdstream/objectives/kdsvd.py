"""KD-SVD: how the main directions of the features change from layer to layer (Lee et al. 2018)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.exact import exact
from kdstream.objectives.common.checks import need_maps, need_teacher, tap_pairs
from kdstream.objectives.common.features import product
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Count, Positive, Taps
from kdstream.objectives.common.tap_groups import has_groups
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Task, Term


@torch.no_grad()
def right_singular(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Right singular vectors of each sample's matrix [positions, channels], through the smaller Gram matrix.

    Args:
        maps: float [N,C,P].

    Returns:
        vectors [N,C,R] of length 1, R = min(P, C), largest singular value first (zero where the singular value is
        lost in rounding and P < C); squared singular values, float64 [N,R]; what counts as 0 among these, float64
        [N,1]; both where :func:`kdstream.exact.exact` is.
    """
    channels, positions = maps.shape[1:]
    # float64: a Gram matrix squares the ratios of singular values, and the gradient divides by their gaps.
    wide = exact(maps)
    inner = product(wide, wide.mT) if channels <= positions else product(wide.mT, wide)
    # A NaN must come out as a loss that is not finite, which training reports, not as a failure of the solver.
    squares, basis = torch.linalg.eigh(inner.nan_to_num(0, 0, 0))
    squares, basis = squares.flip(-1).clamp(min=0), basis.flip(-1)
    nothing = squares[:, :1] * (squares.shape[1] * torch.finfo(maps.dtype).eps)
    if channels > positions:
        basis = F.normalize(product(wide, basis), dim=1) * (squares > nothing)[:, None]
    return basis.to(maps), squares, nothing


def differentiable(maps: Tensor, chosen: Tensor, basis: Tensor, squares: Tensor, nothing: Tensor) -> Tensor:
    r"""The right singular vectors at ``chosen`` with their gradient.

    For eigenvalue lambda_i of A = X^T X, first-order perturbation gives dv_i = sum_{j != i} v_j (v_j . dA v_i) /
    (lambda_i - lambda_j). Only the gaps to the chosen vectors enter: the derivative of a full decomposition would be
    infinite wherever any two singular values agree, as in every map with fewer positions than channels. Directions
    whose gap is lost in rounding contribute nothing.

    Args:
        maps: [N,C,P], with gradient.
        chosen: int64 [N,K], columns of ``basis``.
        basis, squares, nothing: of :func:`right_singular`.

    Returns:
        [N,C,K].
    """
    vectors = basis.gather(2, chosen[:, None].expand(-1, basis.shape[1], -1))
    change = product(maps, product(maps.mT, vectors))
    change = change - change.detach()
    own = squares.gather(1, chosen.to(squares.device))
    gap = own[:, None] - squares[:, :, None]
    share = torch.where(gap.abs() > nothing[:, None], gap, torch.inf).reciprocal().to(maps)
    along = product(basis.mT, change)
    moved = product(basis, share * along)
    if basis.shape[1] > basis.shape[2]:  # the rest of the space belongs to the singular value 0
        null = torch.where(own > nothing, own, torch.inf).reciprocal().to(maps)[:, None]
        rest = change - product(basis, along)
        moved = moved + null * rest
    return vectors + moved


class SingularValueTransfer(Term):
    r"""Sum over consecutive taps of the squared difference of the relations between their leading singular vectors.

    .. math:: \sum_i \frac1N \sum (R^s_i - R^t_i)^2, \quad R_i = \exp\big( -(v_i \ominus v_{i-1})^2 / \gamma \big)

    v_i [C_i,k] are the k leading right singular vectors of a sample's map as a matrix [H*W,C_i], times the teacher's
    singular values scaled to norm 1; :math:`\ominus` takes all differences of entries, [C_i,C_{i-1},k], the largest
    tensor a sample. For each of the teacher's vectors the student's is the nearest (by absolute cosine) of its k + 3
    leading ones, with its sign turned to agree. A singular vector's own sign is arbitrary, and the value depends on
    the teacher's: here its entries sum to >= 0, which for maps after a ReLU makes the leading vector non-negative.

    Source: Lee et al. 2018 (arXiv:1807.06819), in RepDistiller's form (outer weight 1), which takes the sign that
    the solver happens to give.

    Args:
        taps: the student's feature maps, at least two. Default ``block*``: all blocks that both networks have
            (RepDistiller).
        teacher_taps: the teacher's, in the same order; the same names by default. Channels must agree.
        k: number of singular vectors, a whole number >= 1. Default 1.
        gamma: > 0. Default 8.

    Raises:
        UserError: a setting out of range; no teacher; a tap that is no feature map; channels that differ; maps of one
            channel, or with fewer than k channels or positions.
    """

    def __init__(
        self,
        taps: Taps = ("block*",),
        teacher_taps: Taps | None = None,
        k: Count = 1,
        gamma: Positive = 8.0,
    ):
        super().__init__()
        self.student_taps, self.teacher_taps = tap_pairs("kdsvd", taps, teacher_taps)
        self._need_two()
        self.k = k
        self.gamma = gamma

    def _need_two(self) -> None:
        if len(self.student_taps) < 2 and not has_groups(self.student_taps):
            raise UserError(f"kdsvd: compares consecutive taps, got {self.student_taps[0]} alone; name more in taps")

    def setup(self, task: Task) -> None:
        self._need_two()
        student, teacher = task.student_outputs, need_teacher("kdsvd", task)
        for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True):
            pair = student.features[ours], teacher.features[theirs]
            need_maps("kdsvd", ours, theirs, *pair)
            shapes = [list(maps.shape[1:]) for maps in pair]
            both = f"the student's {ours!r} {shapes[0]} and the teacher's {theirs!r} {shapes[1]} ([C,H,W])"
            if shapes[0][0] != shapes[1][0]:
                raise UserError(
                    f"kdsvd: {both} differ in channels, so their singular vectors cannot be compared: choose a teacher "
                    "of the student's widths or another objective"
                )
            if shapes[0][0] == 1:
                raise UserError(
                    f"kdsvd: {both} have one channel, whose singular vector is 1 whatever it holds: choose others"
                )
            if self.k > min(min(c, h * w) for c, h, w in shapes):
                raise UserError(f"kdsvd: {both} do not have k = {self.k} singular vectors: lower k")

    def aligned(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """v of both at one tap: maps [N,C,H,W], [N,C,H',W'] -> [N,C,k], [N,C,k], at least float32."""
        ours, theirs = at_least_float32(student).flatten(2), at_least_float32(teacher).flatten(2)
        basis, squares, _ = right_singular(theirs)
        target = basis[:, :, : self.k]
        scale = F.normalize(squares[:, None, : self.k].sqrt(), dim=2).to(target)
        target = torch.where(target.sum(dim=1, keepdim=True) < 0, -target, target)
        basis, squares, nothing = right_singular(ours)
        cosine = product(basis[:, :, : self.k + 3].mT, target)
        chosen = cosine.abs().argmax(dim=1)
        sign = cosine.gather(1, chosen[:, None]).sign()
        return differentiable(ours, chosen, basis, squares, nothing) * sign * scale, target * scale

    def relations(self, high: Tensor, low: Tensor) -> Tensor:
        """R of two consecutive taps: [N,C_i,k], [N,C_{i-1},k] -> [N,C_i,C_{i-1},k]."""
        return torch.exp((high[:, :, None] - low[:, None]).square() / -self.gamma)

    def parts(self, student: Outputs, teacher: Outputs) -> list[Tensor]:
        """The summands, shallow to deep."""
        taps = [
            self.aligned(student.features[ours], teacher.features[theirs])
            for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True)
        ]
        return [
            (self.relations(s_high, s_low) - self.relations(t_high, t_low)).square().sum() / len(s_high)
            for (s_low, t_low), (s_high, t_high) in pairwise(taps)
        ]

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return total(self.parts(student, teacher))
