"""kd: the invariants of its formula, half precision, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, logits, seeds, task
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.kd import KnowledgeDistillation, softened_kl

temperatures = st.floats(0.5, 20)


@given(seeds, temperatures)
@settings(max_examples=30, deadline=None)
def test_kd_is_zero_exactly_where_the_distributions_agree(seed, temperature):
    ours, other = logits(seed), logits(seed + 1)
    shifted = ours + torch.arange(5.0)[:, None]
    assert abs(softened_kl(ours, shifted, temperature).item()) < 1e-12
    assert softened_kl(ours, other, temperature).item() > 1e-5


@given(seeds, temperatures, st.floats(-1000, 1000))
@settings(max_examples=30, deadline=None)
def test_kd_does_not_see_a_constant_added_to_a_row(seed, temperature, constant):
    ours, theirs = logits(seed), logits(seed + 1)
    value = softened_kl(ours, theirs, temperature)
    rows = torch.zeros(5, 1, dtype=torch.float64)
    rows[2] = constant
    torch.testing.assert_close(softened_kl(ours + rows, theirs, temperature), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(softened_kl(ours, theirs - rows, temperature), value, rtol=1e-9, atol=1e-12)


@given(seeds, temperatures)
@settings(max_examples=30, deadline=None)
def test_gradient_of_kd_is_the_difference_of_the_distributions(seed, temperature):
    ours, theirs = logits(seed).requires_grad_(), logits(seed + 1)
    term = KnowledgeDistillation(temperature=temperature)
    (gradient,) = torch.autograd.grad(term(Outputs(ours), Outputs(theirs), batch(label=torch.zeros(5).long())), ours)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    expected = torch.softmax(ours / temperature, 1) - torch.softmax(theirs / temperature, 1)
    torch.testing.assert_close(gradient, temperature / 5 * expected, rtol=1e-9, atol=1e-12)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_kd_times_t_squared_tends_to_half_the_variance_of_the_difference(seed):
    """Hinton et al. 2015, section 2.1: at high temperature the term is a squared difference of centred logits."""
    ours, theirs = logits(seed), logits(seed + 1)
    term = KnowledgeDistillation(temperature=1e4)
    value = term(Outputs(ours), Outputs(theirs), batch(label=torch.zeros(5).long()))
    expected = (ours - theirs).var(dim=1, correction=0).mean() / 2
    torch.testing.assert_close(value, expected, rtol=5e-3, atol=0)


def test_kd_survives_confident_teachers_and_half_precision():
    ours = torch.tensor([[300.0, -300.0, 0.0]], dtype=torch.float16, requires_grad=True)
    theirs = torch.tensor([[-300.0, 300.0, 0.0]], dtype=torch.float16)
    value = KnowledgeDistillation(temperature=1.0)(Outputs(ours), Outputs(theirs), batch(label=torch.zeros(1).long()))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(600.0)
    torch.testing.assert_close(ours.grad, torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float16))


def test_kd_under_autocast_is_float32():
    layer = torch.nn.Linear(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = layer(torch.ones(2, 4))
        value = KnowledgeDistillation()(Outputs(ours), Outputs(ours + 1), batch(label=torch.zeros(2).long()))
    assert ours.dtype == torch.bfloat16
    assert value.dtype == torch.float32


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf"), True, "hot", None, [4]])
def test_kd_refuses_a_temperature(temperature):
    with pytest.raises(UserError, match=r"^kd: temperature must be a finite number > 0, got "):
        KnowledgeDistillation(temperature=temperature)


def test_kd_needs_a_teacher_of_the_same_classes():
    ours = Outputs(torch.zeros(2, 10))
    KnowledgeDistillation().setup(task(ours, ours))
    with pytest.raises(UserError, match="kd: the student has 10 classes and the teacher 100"):
        KnowledgeDistillation().setup(task(ours, Outputs(torch.zeros(2, 100))))
    with pytest.raises(UserError, match="kd: needs a teacher, but the job has none"):
        KnowledgeDistillation().setup(task(ours, None))
