"""Probabilistic knowledge transfer: who is whose neighbour, as probabilities (Passalis & Tefas 2018)."""

from __future__ import annotations

from torch import Tensor, linalg

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.exact import exact
from kdstream.objectives.common.checks import need_samples, need_teacher
from kdstream.objectives.common.features import product, tap_pair, vectors
from kdstream.objectives.common.settings import Positive, Tap
from kdstream.objectives.term import Task, Term


def neighbours(features: Tensor, eps: float) -> Tensor:
    """Probability of each sample to be another's neighbour: (cosine + 1) / 2, over the sum of its row.

    Args:
        features: [N,...], flattened.
        eps: added to each vector's norm.

    Returns:
        float64 [N,N]; rows sum to 1.
    """
    flat = vectors(features)
    flat = flat / (linalg.vector_norm(flat, dim=1, keepdim=True) + eps)
    # The loss is the small difference of nearly equal probabilities. Rounding of the cosines enters it only in second
    # order as long as the rows sum to 1 exactly and the logarithms are exact: float64 on [N,N], not on the features.
    kernel = (exact(product(flat, flat.mT)) + 1) / 2
    return kernel / kernel.sum(dim=1, keepdim=True)


class ProbabilisticTransfer(Term):
    r"""Divergence of the student's neighbour probabilities from the teacher's, mean over all N^2 pairs.

    .. math:: \frac{1}{N^2} \sum_{ij} P^t_{ij} \log \frac{P^t_{ij} + \epsilon}{P^s_{ij} + \epsilon}, \quad
              P_{ij} = \frac{(\cos_{ij} + 1) / 2}{\sum_k (\cos_{ik} + 1) / 2}

    Largest tensor: the batch's features, and [N,N] in float64.

    Source: Passalis & Tefas 2018 (ECCV, "Learning deep representations with probabilistic knowledge transfer"), the
    cosine kernel. The mean with the diagonal is that of the authors' code and RepDistiller (the paper sums over
    j != i), which goes with RepDistiller's outer weight 30000.

    Args:
        eps: > 0. Default 1e-7 (the authors' code).
        tap: the student's feature, of any shape. Default ``penultimate``.
        teacher_tap: the teacher's; the same name by default.

    Raises:
        UserError: a setting out of range; no teacher; a single sample in a batch; a feature of one number.
    """

    over_batch = True

    def __init__(self, eps: Positive = 1e-7, tap: Tap = "penultimate", teacher_tap: Tap | None = None):
        super().__init__()
        self.eps = eps
        self.student_taps, self.teacher_taps = tap_pair(tap, teacher_tap)

    def setup(self, task: Task) -> None:
        width = task.student_outputs.features[self.student_taps[0]][0].numel()
        need_teacher("pkt", task)
        need_samples("pkt", task, 2, "a neighbour")
        if width < 2:
            raise UserError(
                f"pkt: the student's {self.student_taps[0]!r} is one number, which has no angle; choose another tap"
            )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        pair = self.whole(student.features[self.student_taps[0]], teacher.features[self.teacher_taps[0]])
        ours, theirs = (neighbours(features, self.eps) for features in pair)
        value = (theirs * ((theirs + self.eps).log() - (ours + self.eps).log())).mean()
        return value.to(vectors(pair[0]))
