"""ttm: where it is zero, its gradient, kd as its special case, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import logits, no_labels, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import parse_loss
from kdstream.objectives.kd import KnowledgeDistillation
from kdstream.objectives.ttm import TransformedTeacherMatching, transformed_kl

gammas = st.floats(0.05, 1)


@given(seeds, gammas)
@settings(max_examples=30)
def test_matching_is_zero_exactly_where_the_student_is_the_transformed_teacher(seed, gamma):
    theirs = logits(seed)
    shifted = gamma * theirs + torch.arange(5.0)[:, None]
    assert transformed_kl(shifted, theirs, gamma).abs().max() < 1e-12
    assert transformed_kl(logits(seed + 1), theirs, gamma).min() > 1e-6


@given(seeds, gammas)
@settings(max_examples=20)
def test_gradient_of_matching_is_equation_20(seed, gamma):
    ours, theirs = logits(seed).requires_grad_(), logits(seed + 1)
    term = TransformedTeacherMatching(gamma=gamma)
    (gradient,) = torch.autograd.grad(term(Outputs(ours), Outputs(theirs), no_labels(5)), ours)
    power = torch.softmax(theirs, 1) ** gamma
    expected = (torch.softmax(ours, 1) - power / power.sum(1, keepdim=True)) / 5
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_gamma_1_is_kd_at_temperature_1():
    ours, theirs = Outputs(logits(0)), Outputs(logits(1))
    value = TransformedTeacherMatching(gamma=1)(ours, theirs, no_labels(5))
    torch.testing.assert_close(value, KnowledgeDistillation(temperature=1)(ours, theirs, no_labels(5)))


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "1e-1"])
def test_ttm_refuses_settings_out_of_range(value):
    with pytest.raises(UserError, match=r"^ttm: gamma must be a finite number > 0, got "):
        parse_loss({"ttm": {"gamma": value}})
