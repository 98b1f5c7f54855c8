"""SimKD: the student imitates the teacher's last map and answers through its classifier (Chen et al. 2022)."""

from __future__ import annotations

from torch import Tensor

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.connectors import JointTerm
from kdstream.objectives.common.settings import Count, Kernels, OneTap


class SimKD(JointTerm):
    r"""Mean squared error of the connected map; no label, no logit.

    .. math:: \mathrm{mse}\big(c(s), t\big)

    The connector c belongs to the network that is deployed: backbone, c, spatial mean, the teacher's frozen
    classifier (:mod:`kdstream.models.joint`). Use it as the only term: ``loss: simkd``.

    Source: Chen et al. 2022 (arXiv:2203.14001); "Knowledge Distillation Under Ideal Joint Classifier
    Assumption", Algorithm 2. Where sizes differ the larger map is average-pooled: the student's before the connector,
    the teacher's for the comparison (the authors' code).

    Args:
        connector: convolutions, each with BatchNorm and ReLU: 1x1, 1x1-1x1, 1x1-3x3-1x1, ... Default that of the
            authors' code.
        mid_channels: between the convolutions; half of the teacher's width by default (there, too).
        taps: the student's map; by default the one that its own classifier reads, averaged.
        teacher_taps: the teacher's, which must be the one that its classifier reads, averaged: ``map``, by default.

    Raises:
        UserError: a setting out of range; no teacher, one of another number of classes, or one whose classifier
            reads no averaged map.
    """

    def __init__(
        self,
        connector: Kernels = "1x1-3x3-1x1",
        mid_channels: Count | None = None,
        taps: OneTap | None = None,
        teacher_taps: OneTap = "map",
    ):
        super().__init__("simkd", connector, mid_channels, taps, teacher_taps, compares_maps=True)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return self.feature_distance(student, teacher)
