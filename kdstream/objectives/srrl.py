"""SRRL: the teacher's classifier must see in the student's features what it sees in its own (Yang et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdstream.batch import Batch, Outputs
from kdstream.notes import note, taps_of
from kdstream.objectives.common.checks import need_same_classes, need_teacher, need_weight, teacher_network
from kdstream.objectives.common.connectors import HEAD, ReusedClassifier, logit_distance, map_distance
from kdstream.objectives.common.features import pooled
from kdstream.objectives.common.settings import Count, Kernels, NotNegative, OneTap
from kdstream.objectives.term import Build, Task

if TYPE_CHECKING:
    from kdstream.models.joint import ReusedHead

_TAP = "srrl.map"


class SRRL(ReusedClassifier):
    r"""Logits of the teacher's frozen classifier on the connected map, and the map itself.

    .. math:: \alpha \, \mathrm{mse}\big(g_t(\overline{c(s)}), o^t\big) + \beta \, \mathrm{mse}\big(c(s), t\big)

    The connector c is trained beside the student (``connector.*``) and dropped with the classifier's copy
    (``teacher.fc``): the student is deployed with its own classifier, which learns from the labels by another term,
    ``loss: {ce: 1, srrl: 1}``.

    Source: Yang et al. 2021 ("Knowledge distillation via softmax regression representation learning"), in
    the form of "Knowledge Distillation Under Ideal Joint Classifier Assumption", Algorithm 1: the map is compared,
    where the authors' code compares spatial means. Where sizes differ the larger map is average-pooled, as in SimKD.

    Args:
        alpha: weight of the logits, >= 0. Default 1 (section 4.1 there).
        beta: weight of the maps, >= 0. Default 1.
        connector: convolutions, each with BatchNorm and ReLU: 1x1 (default), 1x1-1x1, 1x1-3x3-1x1, ...
        mid_channels: between the convolutions; half of the teacher's width by default.
        taps: the student's map; by default the one that its own classifier reads, averaged.
        teacher_taps: the teacher's; where beta > 0 it must be the one that its classifier reads, averaged.

    Raises:
        UserError: a setting out of range; no teacher, one of another number of classes, or one whose classifier
            reads no averaged map.
    """

    def __init__(
        self,
        alpha: NotNegative = 1.0,
        beta: NotNegative = 1.0,
        connector: Kernels = "1x1",
        mid_channels: Count | None = None,
        taps: OneTap | None = None,
        teacher_taps: OneTap = "map",
    ):
        need_weight("srrl", alpha=alpha, beta=beta)
        super().__init__("srrl", connector, mid_channels, taps, teacher_taps, compares_maps=beta > 0)
        self.alpha, self.beta = alpha, beta
        self.student_taps = (self.tap or _TAP,)

    def adapt(self, student: nn.Module, teacher: nn.Module | None, image: Tensor, build: Build) -> nn.Module:
        """No surgery: the student's map gets the name of a tap where none was given."""
        ours, _ = self.find_maps(student, self.need_network(teacher), image)
        note(student, taps={**taps_of(student), self.student_taps[0]: ours.path})
        return student

    def setup(self, task: Task) -> None:
        need_same_classes("srrl", task)
        self.check_teacher(task)
        ours = task.student_outputs.features[self.student_taps[0]].shape[1:]
        theirs = need_teacher("srrl", task).features[self.teacher_taps[0]].shape[1:]
        classifier = teacher_network("srrl", task).classifier
        head: ReusedHead = task.build(HEAD, classifier.out_features, **self.head_settings(ours, theirs, classifier))
        head.classifier.load_state_dict(classifier.state_dict())
        self.size, self.connector = head.size, head.connector
        self.teacher = nn.ModuleDict({"fc": head.classifier.requires_grad_(False)})

    def connect(self, student: Outputs) -> Tensor:
        """c(s): [N,D,H,W]."""
        maps = student.features[self.student_taps[0]]
        return self.connector(maps if self.size is None else pooled(maps, self.size))

    def classify(self, connected: Tensor) -> Tensor:
        """The teacher's classifier on the spatial mean of c(s): logits [N,C]."""
        return self.teacher["fc"](connected.mean(dim=(2, 3)))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        connected = self.connect(student)
        loss = self.alpha * logit_distance(self.classify(connected), teacher.logits)
        if self.beta:
            loss = loss + self.beta * map_distance(connected, teacher.features[self.teacher_taps[0]])
        return loss
