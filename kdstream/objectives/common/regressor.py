"""The convolutional regressor that brings a student's map to the teacher's shape (FitNets; AB uses it as well)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.errors import UserError


def bridge(student: Tensor, teacher: Tensor) -> nn.Module | None:
    """The convolution (with bias) from the student's map to the teacher's channels, height and width.

    Twice the teacher's size: 3x3, stride 2, padding 1. Half of it: transposed 4x4, stride 2, padding 1. Otherwise
    at least as large: a valid convolution of kernel (1 + H - H', 1 + W - W'), which is 1x1 for equal sizes. The
    geometry is that of RepDistiller, with which the papers compare.

    Args:
        student: [N,C,H,W].
        teacher: [N,C',H',W'].

    Returns:
        The layer, or None where the student's map is too small in a way that none of these reaches.
    """
    (ours, h, w), (theirs, h_t, w_t) = student.shape[1:], teacher.shape[1:]
    if (h, w) == (2 * h_t, 2 * w_t):
        return nn.Conv2d(ours, theirs, 3, stride=2, padding=1)
    if (2 * h, 2 * w) == (h_t, w_t):
        return nn.ConvTranspose2d(ours, theirs, 4, stride=2, padding=1)
    if h >= h_t and w >= w_t:
        return nn.Conv2d(ours, theirs, (1 + h - h_t, 1 + w - w_t))
    return None


class ConvRegressor(nn.Module):
    """Convolution, BatchNorm and, for FitNet, ReLU: [N,C,H,W] -> [N,C',H',W'].

    Source: Romero et al. 2015 (arXiv:1412.6550), section 2.2, in RepDistiller's form (the paper's regressor has no
    BatchNorm).

    Args:
        owner: the objective, for messages.
        tap: the student's tap, for messages.
        student: a probe of it, [N,C,H,W].
        teacher: a probe of the teacher's tap, [N,C',H',W'].
        relu: end with a ReLU (FitNet: yes, AB: no).

    Raises:
        UserError: sizes that no geometry of :func:`bridge` joins; the message has both shapes.
    """

    def __init__(self, owner: str, tap: str, student: Tensor, teacher: Tensor, relu: bool = True):
        super().__init__()
        conv = bridge(student, teacher)
        if conv is None:
            raise UserError(
                f"{owner}: the student's {tap!r} {list(student.shape[1:])} cannot be brought to the teacher's "
                f"{list(teacher.shape[1:])} ([C,H,W]): a smaller map must have half its height and width; pair other "
                "taps by taps and teacher_taps"
            )
        self.conv = conv
        self.bn = nn.BatchNorm2d(teacher.shape[1])
        self.relu = relu

    def forward(self, maps: Tensor) -> Tensor:
        out = self.bn(self.conv(maps))
        return F.relu(out) if self.relu else out
