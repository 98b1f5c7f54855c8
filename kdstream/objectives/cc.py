"""Correlation congruence: the student errs alike on neighbouring samples of the batch (Peng et al. 2019)."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_samples, need_teacher
from kdstream.objectives.common.features import tap_pair, vectors
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Count, Tap
from kdstream.objectives.term import Task, Term


class CorrelationCongruence(Term):
    r"""Mean product of the embedding errors of neighbouring samples.

    .. math:: \frac{1}{N-1} \sum_{i=0}^{N-2} \langle \delta_i, \delta_{i+1} \rangle, \quad
              \delta_i = \lvert e_s(s_i) - e_t(t_i) \rvert

    The linear embeddings e (with bias, not normalised) are trained beside the student, the teacher's too:
    ``embed_s.linear``, ``embed_t.linear``. Neighbours are those of the batch, so its order matters.

    Source: RepDistiller's form, with its outer weight 0.02. Peng et al. 2019 (arXiv:1904.01802) print another one:
    the squared Frobenius distance of the samples' kernel matrices over N^2.

    Args:
        feat_dim: width of the embedding, a whole number >= 1. Default 128 (RepDistiller).
        tap: the student's feature, flattened. Default ``penultimate`` (RepDistiller).
        teacher_tap: the teacher's; the same name by default.

    Raises:
        UserError: a setting out of range; no teacher; a single sample in a batch.
    """

    over_batch = True

    def __init__(self, feat_dim: Count = 128, tap: Tap = "penultimate", teacher_tap: Tap | None = None):
        super().__init__()
        self.feat_dim = feat_dim
        self.student_taps, self.teacher_taps = tap_pair(tap, teacher_tap)

    def setup(self, task: Task) -> None:
        student, teacher = task.student_outputs, need_teacher("cc", task)
        need_samples("cc", task, 2, "a neighbour")
        self.embed_s = self._embedding(student.features[self.student_taps[0]])
        self.embed_t = self._embedding(teacher.features[self.teacher_taps[0]])

    def _embedding(self, probe: Tensor) -> nn.Module:
        return nn.Sequential(OrderedDict(linear=nn.Linear(probe[0].numel(), self.feat_dim)))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours = self.embed_s(vectors(student.features[self.student_taps[0]]))
        theirs = self.embed_t(vectors(teacher.features[self.teacher_taps[0]]))
        (error,) = self.whole((at_least_float32(ours) - at_least_float32(theirs)).abs())
        return (error[:-1] * error[1:]).sum() / max(len(error) - 1, 1)
