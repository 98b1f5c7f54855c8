"""wttm: the bounds of its weights, what it does not see, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import logits, no_labels, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import parse_loss
from kdstream.objectives.wttm import WeightedTransformedTeacherMatching, power_sum

gammas = st.floats(0.05, 1)


@given(seeds, gammas)
@settings(max_examples=30)
def test_power_sum_lies_between_that_of_certainty_and_that_of_ignorance(seed, gamma):
    values = power_sum(logits(seed), gamma)
    assert (values >= 1 - 1e-12).all()
    assert (values <= 7 ** (1 - gamma) + 1e-12).all()
    torch.testing.assert_close(power_sum(torch.zeros(1, 7).double(), gamma).item(), 7 ** (1 - gamma))
    torch.testing.assert_close(power_sum(torch.eye(7).double() * 1e4, gamma), torch.ones(7).double())


@given(seeds, gammas, st.floats(-500, 500))
@settings(max_examples=20)
def test_constants_added_to_rows_change_nothing(seed, gamma, constant):
    ours, theirs = logits(seed), logits(seed + 1)
    term = WeightedTransformedTeacherMatching(gamma=gamma)
    value = term(Outputs(ours), Outputs(theirs), no_labels(5))
    shifted = term(Outputs(ours + constant), Outputs(theirs - constant), no_labels(5))
    torch.testing.assert_close(shifted, value, rtol=1e-9, atol=1e-11)


def test_wttm_is_the_mean_of_the_weighted_divergences():
    ours, theirs = logits(0), logits(1)
    value = WeightedTransformedTeacherMatching(gamma=0.3)(Outputs(ours), Outputs(theirs), no_labels(5))
    p = torch.softmax(theirs, 1)
    target = p**0.3 / (p**0.3).sum(1, keepdim=True)
    divergence = (target * (target.log() - torch.log_softmax(ours, 1))).sum(1)
    torch.testing.assert_close(value, ((p**0.3).sum(1) * divergence).mean())


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "1e-1"])
def test_wttm_refuses_settings_out_of_range(value):
    with pytest.raises(UserError, match=r"^wttm: gamma must be a finite number > 0, got "):
        parse_loss({"wttm": {"gamma": value}})
