"""KD++: the student's feature grows as long as the teacher's, in the direction of its class (Wang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives.common.checks import need_teacher
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.term import Phase, Task, Term


def larger_norm(student: Tensor, teacher: Tensor) -> Tensor:
    """The larger of a sample's two feature lengths: [N,d], [N,d] -> [N]; at least 1e-4, which bounds the gradient where
    both networks are silent."""
    return torch.maximum(student.norm(dim=1), teacher.norm(dim=1)).clamp(min=1e-4)


def norm_and_direction(student: Tensor, teacher: Tensor, centre: Tensor) -> Tensor:
    r"""1 - <f_s, e> / max(|f_s|, |f_t|) with e = centre / |centre|.

    The maximum is a part of the graph: a student longer than the teacher only turns, a shorter one also grows.

    Args:
        student, teacher: features, float [N,d].
        centre: mean (or sum) of the teacher's features of each sample's class, [N,d].

    Returns:
        [N], in 0..2, float32 for half-precision features.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    along = (student * F.normalize(centre, dim=1)).sum(dim=1)
    return 1 - along / larger_norm(student, teacher)


class NormAndDirection(Term):
    r"""One minus the student's feature along its class mean, relative to the longer of both features.

    .. math:: \frac1N \sum_n \Big(1 - \frac{\langle f^s_n, e_{y_n} \rangle}
              {\max(\lVert f^s_n \rVert, \lVert f^t_n \rVert)}\Big), \quad e_c = m_c / \lVert m_c \rVert

    m_c is the mean of the (coded) teacher's ``penultimate`` features over the training samples of class c. It is
    measured in a phase ``kdpp.class_means`` of one epoch, which trains nothing, on the views that the recipe's stream
    makes (the authors read it from a file). Class sums are kept, ``class_sums`` [C,d]: their direction is the means'.
    Where the widths differ, the student's feature goes through BatchNorm, Dropout(0.5) and a linear layer
    (``embedding``) that are trained beside it, as in the authors' code.

    Source: Wang et al. 2023, "Improving Knowledge Distillation via Regularizing Feature Norm and Direction"
    (arXiv:2305.17007), in the form of the authors' code. This is their ND part alone; on CIFAR-100 they use, beside a
    cross-entropy of 1, ``kd`` at temperature 4 and this with outer weights 1 and 2 (resnet56 -> 20), 3.5 and 2
    (resnet32x4 -> 8x4), 1 and 1.5 (WRN-40-2 -> 40-1), 3 and 0.5 (ResNet-50 -> MobileNetV2), 2.5 and 1.5 (resnet32x4 ->
    ShuffleV1), 4 and 0.5 (resnet32x4 -> ShuffleV2). No settings.

    Raises:
        UserError: no teacher; features that are no vectors [N,d].
    """

    keeps = "the mean feature of each class"
    student_taps = ("penultimate",)
    teacher_taps = ("penultimate",)

    class_sums: Tensor

    def setup(self, task: Task) -> None:
        student, teacher = task.student_outputs, need_teacher("kdpp", task)
        ours, theirs = student.features["penultimate"], teacher.features["penultimate"]
        for role, value in (("student", ours), ("teacher", theirs)):
            if value.ndim != 2:
                raise UserError(
                    f"kdpp: the {role}'s 'penultimate' has shape {list(value.shape)}, not that of vectors [N,d]; "
                    f"name the input of its last linear layer by {role}.taps"
                )
        width, target = ours.shape[1], theirs.shape[1]
        self.register_buffer("class_sums", torch.zeros(task.num_classes, target))
        if width != target:
            self.embedding = nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, target))

    def phases(self) -> Sequence[Phase]:
        return (Phase("kdpp.class_means", epochs=1, lr=0.0, loss="add_features", trains="nothing"),)

    @torch.no_grad()
    def add_features(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """Add the batch's teacher features to the sums of their classes, on every process those of all; returns 0."""
        features = teacher.features["penultimate"].to(self.class_sums.dtype)
        added = torch.zeros_like(self.class_sums).index_add_(0, batch.label, features)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(added)
        self.class_sums += added
        return features.new_zeros(())

    def embedded(self, features: Tensor) -> Tensor:
        """The student's feature in the teacher's width: [N,d_s] -> [N,d]."""
        if not hasattr(self, "embedding"):
            return features
        # A single sample has no batch statistics: it is normalised by the running ones.
        self.embedding[0].train(self.training and len(features) > 1)
        return self.embedding(at_least_float32(features))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours = self.embedded(student.features["penultimate"])
        theirs = teacher.features["penultimate"]
        return norm_and_direction(ours, theirs, self.class_sums[batch.label]).mean()
