"""What the terms that attack the inputs share: the range of pixels, and the student's answer to a few images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.term import Task


def pixel_range(owner: str, task: Task, clip: float | None) -> tuple[Tensor, Tensor]:
    """Between which values attacked pixels stay, in units of the standardised images.

    Args:
        owner: the term, for the message.
        task: with the mean and standard deviation of the images where ``clip`` is None.
        clip: the same bound +-clip for all channels; None: the values of black and white, 0 and 1.

    Returns:
        Lowest and highest value, float32 [3,1,1] each.

    Raises:
        UserError: see :func:`channel_scale`.
    """
    if clip is not None:
        high = torch.full((3, 1, 1), clip)
        return -high, high
    scale = channel_scale(owner, "clip: null", task)
    low = -torch.tensor(task.mean, dtype=torch.float32).view(3, 1, 1) * scale
    return low, low + scale


def channel_scale(owner: str, setting: str, task: Task) -> Tensor:
    """The full range of pixels, from 0 to 1, in units of the standardised images: float32 [3,1,1].

    Raises:
        UserError: the task does not say how its images were standardised.
    """
    if task.mean is None or task.std is None:
        raise UserError(f"{owner}: {setting} takes the images' mean and standard deviation, which are unknown here")
    # No deviation below 1e-6, as where images are standardised.
    return 1 / torch.tensor(task.std, dtype=torch.float32).clamp(min=1e-6).view(3, 1, 1)


def ask_student(task: Task, images: Tensor) -> Outputs:
    """The student's answer to images beside the batch, [M,3,H,W].

    One image alone has no batch statistics: where the student ends in maps of one pixel, batch normalisation would
    refuse it. The running statistics stand in, for that pass.
    """
    student = task.student
    if len(images) > 1 or not isinstance(student, nn.Module) or not student.training:
        return student(images)
    student.eval()
    try:
        return student(images)
    finally:
        student.train()
