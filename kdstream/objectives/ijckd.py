"""IJCKD: the student learns labels and logits through the classifier of the teacher (Li et al., IJCKD)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.objectives.common.checks import need_weight
from kdstream.objectives.common.connectors import JointTerm, logit_distance
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Count, Kernels, NotNegative, OneTap


class IJCKD(JointTerm):
    r"""Labels, logits and optionally maps, seen through the ideal joint classifier (the teacher's, frozen).

    .. math:: \alpha_{ce} \, \mathrm{CE}(o^s, y) + \alpha \, \mathrm{mse}(o^s, o^t) + \beta \, \mathrm{mse}(c(s), t),
              \quad o^s = g_t\big(\overline{c(s)}\big)

    The connector c belongs to the network that is deployed: backbone, c, spatial mean, the teacher's classifier g_t
    (:mod:`kdstream.models.joint`). The labels are part of the method: use it as the only term, ``loss: ijckd``.

    Source: "Knowledge Distillation Under Ideal Joint Classifier Assumption", eq. (8) and Algorithm 3, whose means
    are taken though the text defines a sum. Its ablation (Table 3) varies alpha_ce and adds the maps. Where sizes
    differ the larger map is average-pooled, as in SimKD: the paper says nothing.

    Args:
        alpha_ce: weight of the labels, >= 0. Default 1 (Algorithm 3).
        alpha: weight of the logits, >= 0. Default 1 (section 4.1).
        beta: weight of the maps, >= 0. Default 0 (Algorithm 3; 1 in Table 3).
        connector: convolutions, each with BatchNorm and ReLU: 1x1 (default; Table 1), 1x1-1x1, 1x1-3x3-1x1 (Table 2
            and ImageNet), ...
        mid_channels: between the convolutions; half of the teacher's width by default (not given by the paper).
        taps: the student's map; by default the one that its own classifier reads, averaged.
        teacher_taps: the teacher's, read where beta > 0: it must be the one that its classifier reads, averaged.

    Raises:
        UserError: a setting out of range; no teacher, one of another number of classes, or one whose classifier
            reads no averaged map.
    """

    def __init__(
        self,
        alpha_ce: NotNegative = 1.0,
        alpha: NotNegative = 1.0,
        beta: NotNegative = 0.0,
        connector: Kernels = "1x1",
        mid_channels: Count | None = None,
        taps: OneTap | None = None,
        teacher_taps: OneTap = "map",
    ):
        need_weight("ijckd", alpha_ce=alpha_ce, alpha=alpha, beta=beta)
        super().__init__("ijckd", connector, mid_channels, taps, teacher_taps, compares_maps=beta > 0)
        self.alpha_ce, self.alpha, self.beta = alpha_ce, alpha, beta

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        loss = self.alpha_ce * F.cross_entropy(at_least_float32(student.logits), batch.target)
        loss = loss + self.alpha * logit_distance(student.logits, teacher.logits)
        if self.beta:
            loss = loss + self.beta * self.feature_distance(student, teacher)
        return loss
