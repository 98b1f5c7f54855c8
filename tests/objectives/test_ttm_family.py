"""ttm, wttm, renyi and logit_mse: the invariants of their formulas, far logits, no labels, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, parse_loss
from kdstream.objectives.kd import KnowledgeDistillation
from kdstream.objectives.logit_mse import LogitMatching, logit_distance
from kdstream.objectives.renyi import RenyiRegularisedKD, decompose, matching_weight, renyi_entropy
from kdstream.objectives.term import Task
from kdstream.objectives.ttm import TransformedTeacherMatching, transformed_kl
from kdstream.objectives.wttm import WeightedTransformedTeacherMatching, power_sum

seeds = st.integers(0, 2**31 - 1)
gammas = st.floats(0.05, 1)
orders = st.floats(0.05, 5).filter(lambda order: abs(order - 1) > 1e-3)


def logits(seed: int, n: int = 5, c: int = 7, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def no_labels(count: int) -> Batch:
    """A batch whose labels cannot be used."""
    return Batch(torch.zeros(count, 3, 1, 1), None, torch.arange(count))  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------- ttm


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


@pytest.mark.parametrize("term", [TransformedTeacherMatching(0.1), WeightedTransformedTeacherMatching(0.1)])
def test_far_logits_do_not_underflow_in_float32(term):
    """A softmax first and the power afterwards would give the last class exactly 0 in float32."""
    theirs = torch.tensor([[0.0, -30.0, -120.0]])
    ours = torch.tensor([[1.0, 0.0, 0.5]], requires_grad=True)
    wide = ours.detach().double().requires_grad_()
    value, expected = (term(Outputs(o), Outputs(theirs.to(o)), no_labels(1)) for o in (ours, wide))
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad.double(), wide.grad, rtol=1e-6, atol=0)


# ---------------------------------------------------------------------------------------------------- wttm


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


# --------------------------------------------------------------------------------------------------- renyi


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


# ----------------------------------------------------------------------------------------------- logit_mse


def test_logit_mse_is_a_mean_over_classes_or_a_sum():
    ours, theirs = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 3.0]])
    assert LogitMatching()(Outputs(ours), Outputs(theirs), no_labels(2)).item() == pytest.approx(14 / 4)
    assert LogitMatching(classes="sum")(Outputs(ours), Outputs(theirs), no_labels(2)).item() == pytest.approx(7)
    assert logit_distance(ours, ours).item() == 0
    with pytest.raises(UserError, match="logit_mse: classes must be mean or sum, got 'max'"):
        LogitMatching(classes="max")


# ---------------------------------------------------------------------------------------------- all of them

NAMES = ("ttm", "wttm", "renyi", "logit_mse")


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_computed_in_float32(name):
    ours = torch.tensor([[300.0, -300.0, 0.0]], dtype=torch.float16, requires_grad=True)
    theirs = torch.tensor([[-300.0, 300.0, 0.0]], dtype=torch.float16)
    value = OBJECTIVES.find(name)()(Outputs(ours), Outputs(theirs), no_labels(1))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert ours.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_of_the_same_classes_is_needed(name):
    term = OBJECTIVES.find(name)()
    ours = Outputs(torch.zeros(2, 10))
    term.setup(Task(10, 10, 1, ours, Outputs(torch.zeros(2, 10))))
    with pytest.raises(UserError, match=f"{name}: the student has 10 classes and the teacher 100"):
        term.setup(Task(10, 10, 1, ours, Outputs(torch.zeros(2, 100))))
    with pytest.raises(UserError, match=f"{name}: needs a teacher"):
        term.setup(Task(10, 10, 1, ours))


@pytest.mark.parametrize(("name", "setting"), [("ttm", "gamma"), ("wttm", "gamma"), ("renyi", "temperature")])
@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "1e-1"])
def test_settings_out_of_range_are_refused(name, setting, value):
    with pytest.raises(UserError, match=f"^{name}: {setting} must be a finite number > 0, got "):
        parse_loss({name: {setting: value}})
