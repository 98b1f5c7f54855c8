"""dist: what a correlation does not see, its bounds, small batches, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, logits, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.dist import DIST, correlation, correlation_distances
from kdstream.objectives.term import Task


@given(seeds, st.floats(0.5, 8))
@settings(max_examples=30)
def test_parts_are_bounded_and_zero_at_equality(seed, tau):
    ours, theirs = logits(seed), logits(seed + 1)
    for value in correlation_distances(ours, theirs, tau, 1e-8):
        assert 0 < value.item() <= 2 * tau**2
    for value in correlation_distances(ours, ours + 5, tau, 1e-30):  # a class may have next to no probability
        assert abs(value.item()) < 1e-6 * tau**2


@given(seeds, st.floats(0.1, 10), st.floats(-10, 10))
@settings(max_examples=30)
def test_correlation_is_torchs_and_does_not_see_scale_and_shift(seed, scale, shift):
    a, b = logits(seed), logits(seed + 1)
    for dim in (0, 1):
        value = correlation(a, b, dim, 1e-15)
        torch.testing.assert_close(correlation(scale * a + shift, b, dim, 1e-15), value, rtol=1e-7, atol=1e-9)
    pairs = zip(a, b, strict=True)
    expected = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])
    torch.testing.assert_close(correlation(a, b, 1, 1e-15), expected)


def test_weights_of_inter_and_intra():
    ours, theirs = Outputs(logits(0)), Outputs(logits(1))
    inter, intra = correlation_distances(ours.logits, theirs.logits, 4.0, 1e-8)
    torch.testing.assert_close(DIST(beta=2, gamma=3)(ours, theirs, batch(5)), 2 * inter + 3 * intra)


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_of_one_or_two_has_finite_gradients(count):
    ours = logits(0, n=count).float().requires_grad_()
    value = DIST()(Outputs(ours), Outputs(logits(1, n=count).float()), batch(count))
    value.backward()
    assert value.isfinite()
    assert ours.grad.isfinite().all()
    assert ours.grad.abs().max() > 0


def test_half_precision_is_computed_in_float32():
    ours = torch.tensor([[300.0, -300.0, 0.0], [1.0, 2.0, 3.0]], dtype=torch.float16, requires_grad=True)
    value = DIST()(Outputs(ours), Outputs(-ours.detach()), batch(2))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert ours.grad.isfinite().all()


def test_what_dist_refuses():
    for setting, bound in (("beta", ">= 0"), ("gamma", ">= 0"), ("tau", "> 0"), ("eps", "> 0")):
        with pytest.raises(UserError, match=f"dist: {setting} must be a finite number {bound}, got -1"):
            DIST(**{setting: -1})
    task = Task(10, 10, 1, Outputs(torch.zeros(2, 10)), Outputs(torch.zeros(2, 9)))
    with pytest.raises(UserError, match="dist: the student has 10 classes and the teacher 9"):
        DIST().setup(task)
