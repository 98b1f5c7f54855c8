"""What attacks on the inputs share: the range of pixels, and the student's answer to one image alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import maps, outputs, task
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdstream.errors import UserError
from kdstream.objectives.common.attack import ask_student, pixel_range

three = st.tuples(*[st.floats(0.01, 0.99)] * 3)


@given(mean=three, std=three)
def test_the_range_ends_at_black_and_white(mean, std):
    low, high = pixel_range("bss", replace(task(outputs(), None), mean=mean, std=std), None)
    black, white = (torch.tensor([(pixel - m) / s for m, s in zip(mean, std, strict=True)]) for pixel in (0.0, 1.0))
    torch.testing.assert_close(low.flatten(), black, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(high.flatten(), white, rtol=1e-4, atol=1e-4)


def test_a_clip_needs_no_statistics_and_the_pixels_do():
    low, high = pixel_range("bss", task(outputs(), None), 2.5)
    assert (low.flatten().tolist(), high.flatten().tolist()) == ([-2.5] * 3, [2.5] * 3)
    with pytest.raises(UserError, match=r"^bss: clip: null takes the images' mean and standard deviation, which are"):
        pixel_range("bss", task(outputs(), None), None)


def test_one_image_alone_takes_the_running_statistics_and_training_goes_on():
    student = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).train()
    asked = replace(task(outputs(), None), student=student)
    torch.testing.assert_close(ask_student(asked, maps(1, 3, 4, 4)), student.eval()(maps(1, 3, 4, 4)))
    student.train()
    before = student[1].running_mean.clone()
    ask_student(asked, maps(1, 3, 4, 4))
    assert student.training
    assert student[1].running_mean.equal(before)
    ask_student(asked, maps(2, 3, 4, 4))
    assert not student[1].running_mean.equal(before)
