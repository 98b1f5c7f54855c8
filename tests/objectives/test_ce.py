"""ce: its value, and half precision."""

from __future__ import annotations

import math

import pytest
import torch
from builders import batch

from kdstream.batch import Outputs
from kdstream.objectives.ce import CrossEntropy


def test_ce_is_the_mean_negative_log_probability_of_the_label():
    student = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    value = CrossEntropy()(Outputs(student), None, batch(label=torch.tensor([1, 2])))
    assert value.item() == pytest.approx(-(math.log(0.25) + math.log(0.8)) / 2)
    assert CrossEntropy.uses_teacher is False


def test_ce_computes_half_precision_logits_in_float32():
    student = torch.tensor([[40.0, 0.0], [0.0, 40.0]], dtype=torch.float16)
    value = CrossEntropy()(Outputs(student), None, batch(label=torch.tensor([0, 0])))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(20.0)
