"""wsld: the weight of a sample, sure teachers, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from builders import batch, labels, logits, seeds
from hypothesis import given, settings
from torch.nn import functional as F

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import parse_loss
from kdstream.objectives.wsld import WeightedSoftLabels, sample_weight


@given(seeds)
@settings(max_examples=30)
def test_weight_of_a_sample_grows_with_the_students_loss_and_has_no_gradient(seed):
    ours, theirs, label = logits(seed).requires_grad_(), logits(seed + 1), labels(seed)
    weight = sample_weight(ours, theirs, label, 1e-7)
    assert not weight.requires_grad
    assert ((weight >= 0) & (weight <= 1)).all()
    worse = sample_weight(ours - F.one_hot(label, 7), theirs, label, 1e-7)
    assert (worse >= weight).all()
    term = WeightedSoftLabels(temperature=2)
    (gradient,) = torch.autograd.grad(term(Outputs(ours), Outputs(theirs), batch(label=label)), ours)
    difference = torch.softmax(ours / 2, 1) - torch.softmax(theirs / 2, 1)
    torch.testing.assert_close(gradient, 2 / 5 * weight[:, None] * difference, rtol=1e-9, atol=1e-12)


def test_wsld_survives_a_teacher_that_is_sure_of_the_label():
    theirs = torch.tensor([[200.0, 0.0]])
    value = WeightedSoftLabels()(Outputs(torch.zeros(1, 2)), Outputs(theirs), batch(label=torch.tensor([0])))
    assert value.item() == pytest.approx(16 * math.log(2))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"wsld": {"temperature": 0}}, "wsld: temperature must be a finite number > 0, got 0"),
        ({"wsld": {"eps": 0}}, "wsld: eps must be a finite number > 0, got 0"),
    ],
)
def test_wsld_refuses_settings_out_of_range(loss, message):
    with pytest.raises(UserError) as caught:
        parse_loss(loss)
    assert str(caught.value).startswith(message)
