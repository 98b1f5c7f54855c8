"""Factor transfer: the student imitates a paraphrase of the teacher's map (Kim et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives.at import attention
from kdstream.objectives.common.checks import need_maps, need_positions, need_teacher
from kdstream.objectives.common.features import same_size, tap_pair
from kdstream.objectives.common.precision import at_least_float32
from kdstream.objectives.common.settings import Count, Milestones, NotNegative, Positive, Tap
from kdstream.objectives.term import Phase, Task, Term


class Encoder(nn.Module):
    """Three 3x3 convolutions of padding 1 to ``factor`` channels, LeakyReLU after each: [N,C,H,W] -> [N,F,H,W].

    Args:
        channels: C.
        factor: F.
        slope: of the LeakyReLU.
        batch_norm: BatchNorm before each LeakyReLU.
    """

    def __init__(self, channels: int, factor: int, slope: float, batch_norm: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, factor, 3, padding=1)
        self.conv3 = nn.Conv2d(factor, factor, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        self.bn2 = nn.BatchNorm2d(factor) if batch_norm else nn.Identity()
        self.bn3 = nn.BatchNorm2d(factor) if batch_norm else nn.Identity()
        self.slope = slope

    def forward(self, maps: Tensor) -> Tensor:
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            maps = F.leaky_relu(bn(conv(maps)), self.slope)
        return maps


class Decoder(nn.Module):
    """Three transposed 3x3 convolutions of padding 1 back to ``channels``, LeakyReLU after each, also the last:
    [N,F,H,W] -> [N,C,H,W]."""

    def __init__(self, channels: int, factor: int, slope: float):
        super().__init__()
        self.deconv1 = nn.ConvTranspose2d(factor, factor, 3, padding=1)
        self.deconv2 = nn.ConvTranspose2d(factor, channels, 3, padding=1)
        self.deconv3 = nn.ConvTranspose2d(channels, channels, 3, padding=1)
        self.slope = slope

    def forward(self, maps: Tensor) -> Tensor:
        for deconv in (self.deconv1, self.deconv2, self.deconv3):
            maps = F.leaky_relu(deconv(maps), self.slope)
        return maps


class Paraphraser(nn.Module):
    """The teacher's auto-encoder: ``encoder`` gives the factor, ``decoder`` proves that it keeps what matters."""

    def __init__(self, channels: int, factor: int, slope: float):
        super().__init__()
        self.encoder = Encoder(channels, factor, slope, batch_norm=False)
        self.decoder = Decoder(channels, factor, slope)


class FactorTransfer(Term):
    r"""Mean absolute difference of the normalised factors of student and teacher.

    .. math:: \mathrm{mean} \, \lvert \hat Q(z_s) - \hat Q(z_t) \rvert^{p_2}, \quad \hat Q = Q / \lVert Q \rVert_2

    z_t is the output of the paraphraser's encoder, z_s that of the translator. In the form ``repdistiller``
    Q(z) = vec mean_c z^p1 and the mean runs over N and positions; in the form ``paper`` Q(z) = vec z, over N,
    channels and positions. Where sizes differ the larger factor is average-pooled to the smaller.

    ``paraphraser`` learns to auto-encode the teacher's map in the phase ``ft.paraphraser`` (mean squared error) and is
    frozen afterwards; ``translator`` is trained beside the student in the main phase.

    Source: Kim et al. 2018 (arXiv:1802.04977), eqs. (1) to (3). The default form is RepDistiller's, which the later
    papers compare with (outer weight 200; BatchNorm in the translator, channels rounded down, 30 epochs of
    initialisation at 0.01 for ResNet, WRN, MobileNetV2 and ShuffleNet students, 0.05 for VGG). The paper and its
    authors' code: outer weight 500, no BatchNorm, channels rounded to the nearest.

    Args:
        k: the factor has k times the teacher's channels, > 0. Default 0.5.
        p1: whole power >= 1 of the form ``repdistiller``. Default 2.
        p2: whole power >= 1 of the difference. Default 1.
        form: ``repdistiller`` or ``paper``.
        leaky_slope: of every LeakyReLU, >= 0. Default 0.1.
        tap: the student's feature map. Default ``block.last``, the last block (RepDistiller).
        teacher_tap: the teacher's; the same name by default.
        epochs: length of the phase.
        lr: its learning rate, > 0.
        milestones: its epochs after which the rate is multiplied by ``gamma``, increasing.
        gamma: the factor, > 0.

    Raises:
        UserError: a setting out of range; no teacher; a tap that is no feature map, or one of a single position
            (in the form ``paper``: with a factor of one channel); k that leaves no channel.
    """

    def __init__(
        self,
        k: Positive = 0.5,
        p1: Count = 2,
        p2: Count = 1,
        form: Literal["repdistiller", "paper"] = "repdistiller",
        leaky_slope: NotNegative = 0.1,
        tap: Tap = "block.last",
        teacher_tap: Tap | None = None,
        epochs: Count = 30,
        lr: Positive = 0.01,
        milestones: Milestones = (),
        gamma: Positive = 0.1,
    ):
        super().__init__()
        self.k = k
        self.p1 = p1
        self.p2 = p2
        self.form = form
        self.leaky_slope = leaky_slope
        self.student_taps, self.teacher_taps = tap_pair(tap, teacher_tap)
        self.phase = Phase("ft.paraphraser", epochs, lr, tuple(milestones), gamma, "reconstruction", "term")

    def setup(self, task: Task) -> None:
        (ours,), (theirs,) = self.student_taps, self.teacher_taps
        student, teacher = task.student_outputs.features[ours], need_teacher("ft", task).features[theirs]
        need_maps("ft", ours, theirs, student, teacher)
        channels = teacher.shape[1]
        factor = int(self.k * channels) if self.form == "repdistiller" else round(self.k * channels)
        if factor < 1:
            raise UserError(
                f"ft: k {self.k:g} leaves no channel of the teacher's {theirs!r}, which has {channels}: raise k"
            )
        if self.form == "repdistiller" or factor == 1:
            need_positions("ft", ours, theirs, student, teacher)
        self.paraphraser = Paraphraser(channels, factor, self.leaky_slope)
        self.translator = Encoder(student.shape[1], factor, self.leaky_slope, self.form == "repdistiller")

    def phases(self) -> Sequence[Phase]:
        return (self.phase,)

    def reconstruction(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        """The phase's loss: mean squared error of the paraphraser's output against the teacher's map."""
        maps = at_least_float32(teacher.features[self.teacher_taps[0]])
        decoded = self.paraphraser.decoder(self.paraphraser.encoder(maps))
        return F.mse_loss(at_least_float32(decoded), maps)

    def normalised(self, factor: Tensor) -> Tensor:
        """Q-hat of the term's form: [N,F,H,W] -> [N,D], rows of L2 norm 1 (a row of zeros stays zero)."""
        return attention(factor, self.p1) if self.form == "repdistiller" else F.normalize(factor.flatten(1), dim=1)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        with torch.no_grad():
            theirs = self.paraphraser.encoder(at_least_float32(teacher.features[self.teacher_taps[0]]))
        ours = self.translator(at_least_float32(student.features[self.student_taps[0]]))
        ours, theirs = same_size(at_least_float32(ours), at_least_float32(theirs))
        return (self.normalised(ours) - self.normalised(theirs)).abs().pow(self.p2).mean()
