"""renyi: its entropy, how it makes kd of ttm, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from builders import logits, no_labels, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import parse_loss
from kdstream.objectives.renyi import RenyiRegularisedKD, decompose, matching_weight, renyi_entropy

orders = st.floats(0.05, 5).filter(lambda order: abs(order - 1) > 1e-3)


@given(seeds, orders)
@settings(max_examples=30)
def test_renyi_entropy_is_bounded_and_falls_with_its_order(seed, order):
    values = logits(seed)
    entropy = renyi_entropy(values, order)
    assert (entropy >= 0).all()
    assert (entropy <= math.log(7) + 1e-12).all()
    assert (renyi_entropy(values, order + 0.5) <= entropy + 1e-9).all()
    torch.testing.assert_close(renyi_entropy(torch.zeros(1, 7).double(), order).item(), math.log(7))


def test_renyi_entropy_of_order_1_is_the_limit():
    values = logits(3)
    torch.testing.assert_close(renyi_entropy(values, 1), renyi_entropy(values, 1 + 1e-7), rtol=1e-5, atol=1e-6)
    q = torch.softmax(values, 1)
    torch.testing.assert_close(renyi_entropy(values, 1), -(q * q.log()).sum(1))


@given(seeds, st.floats(0.5, 20))
@settings(max_examples=30)
def test_matching_is_kd_and_renyi_entropy(seed, temperature):
    ours, theirs = logits(seed), logits(seed + 1)
    parts = decompose(ours.float(), theirs.float(), temperature)
    torch.testing.assert_close(parts.total, parts.ttm, rtol=1e-9, atol=1e-10)
    term = RenyiRegularisedKD(temperature=temperature)(Outputs(ours.float()), Outputs(theirs.float()), no_labels(5))
    torch.testing.assert_close(term.double(), parts.ttm.mean(), rtol=1e-5, atol=1e-6)


def test_the_weight_that_corresponds_to_kd():
    assert matching_weight(4, 0.9) == pytest.approx(36)
    for bad in (1, -0.1):
        with pytest.raises(UserError, match="renyi: kd_weight must be"):
            matching_weight(4, bad)
    with pytest.raises(UserError, match="renyi: order must be a finite number > 0"):
        renyi_entropy(logits(0), 0)


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "1e-1"])
def test_renyi_refuses_settings_out_of_range(value):
    with pytest.raises(UserError, match=r"^renyi: temperature must be a finite number > 0, got "):
        parse_loss({"renyi": {"temperature": value}})
