"""Similarity-preserving distillation: samples alike to the teacher are alike to the student (Tung & Mori 2019)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_samples, need_teacher, tap_pairs
from kdstream.objectives.common.features import product, vectors
from kdstream.objectives.common.settings import Taps
from kdstream.objectives.common.total import total
from kdstream.objectives.term import Task, Term


def similarities(features: Tensor) -> Tensor:
    """Inner products of all pairs of samples: [N,...] -> [N,N], at least float32, each row of L2 norm 1 (a row of
    zeros stays zero)."""
    flat = vectors(features)
    return F.normalize(product(flat, flat.mT), dim=1)


class SimilarityPreserving(Term):
    r"""Sum over taps of the mean squared difference of the batch's similarity matrices.

    .. math:: \frac{1}{N^2} \lVert \tilde G_s - \tilde G_t \rVert_F^2, \quad G = F F^\top, \quad
              \tilde G_{i\cdot} = G_{i\cdot} / \lVert G_{i\cdot} \rVert_2

    F holds one flattened feature a row, so the student's and the teacher's may have any shapes. Largest tensor: the
    batch's features, and [N,N].

    Source: Tung & Mori 2019 (arXiv:1907.09682), eqs. (1) to (4). Outer weight gamma 3000 and block 3: Sarfraz et al.,
    "Knowledge Distillation Beyond Model Compression", Table I.

    Args:
        taps: the student's. Default ``block.last``: the last block (block 3 of CIFAR ResNets and WRNs, block 4 of VGG,
            ResNet50 and MobileNetV2: RepDistiller).
        teacher_taps: the teacher's, in the same order; the same names by default.

    Raises:
        UserError: a setting out of range; no teacher; a single sample in a batch.
    """

    over_batch = True

    def __init__(self, taps: Taps = ("block.last",), teacher_taps: Taps | None = None):
        super().__init__()
        self.student_taps, self.teacher_taps = tap_pairs("sp", taps, teacher_taps)

    def setup(self, task: Task) -> None:
        need_teacher("sp", task)
        need_samples("sp", task, 2, "a similarity")

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        pairs = (
            self.whole(student.features[ours], teacher.features[theirs])
            for ours, theirs in zip(self.student_taps, self.teacher_taps, strict=True)
        )
        return total(F.mse_loss(similarities(ours), similarities(theirs)) for ours, theirs in pairs)
