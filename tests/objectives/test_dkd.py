"""dkd: its parts make up kd, confident rows, its warm-up, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, labels, logits, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import parse_loss
from kdstream.objectives.dkd import DecoupledKD, decoupled
from kdstream.objectives.kd import softened_kl

temperatures = st.floats(0.5, 20)


@given(seeds, temperatures)
@settings(max_examples=30)
def test_kd_is_the_sum_of_the_decoupled_parts(seed, temperature):
    ours, theirs, label = logits(seed, n=1), logits(seed + 1, n=1), labels(seed, n=1)
    tckd, nckd = decoupled(ours, theirs, label, temperature)
    rest = 1 - torch.softmax(theirs / temperature, 1)[0, label[0]]
    together = temperature**2 * softened_kl(ours, theirs, temperature)
    torch.testing.assert_close(tckd + rest * nckd, together, rtol=1e-9, atol=1e-11)


@given(seeds, temperatures)
@settings(max_examples=20)
def test_decoupled_parts_are_zero_exactly_at_equality(seed, temperature):
    ours, label = logits(seed), labels(seed)
    for value in decoupled(ours, ours + torch.arange(5.0)[:, None], label, temperature):
        assert abs(value.item()) < 1e-10 * temperature**2
    for value in decoupled(ours, logits(seed + 1), label, temperature):
        assert value.item() > 1e-6


def test_only_the_target_part_sees_the_label_logit():
    ours, theirs, label = logits(0), logits(1), labels(0)
    moved = ours.scatter_add(1, label[:, None], torch.full((5, 1), 3.0, dtype=torch.float64))
    (tckd, nckd), (tckd_moved, nckd_moved) = (decoupled(z, theirs, label, 4.0) for z in (ours, moved))
    torch.testing.assert_close(nckd_moved, nckd)
    assert abs(tckd_moved - tckd) > 1e-3


def test_confident_rows_keep_their_digits_in_float32():
    """Where 1 - p_y is 1e-13, the share of the others must not come from a subtraction."""
    ours, theirs = torch.tensor([[20.0, 0.0, -1.0]]), torch.tensor([[30.0, -1.0, 1.0]])
    label = torch.tensor([0])
    narrow = ours.clone().requires_grad_()
    wide = ours.double().requires_grad_()
    for z, v in ((narrow, theirs), (wide, theirs.double())):
        tckd, nckd = decoupled(z, v, label, 1.0)
        (1e6 * tckd + nckd).backward()
    torch.testing.assert_close(narrow.grad.double(), wide.grad, rtol=1e-4, atol=0)


def test_warm_up_of_dkd_counts_epochs_from_1():
    ours, theirs, drawn = Outputs(logits(0)), Outputs(logits(1)), batch(label=labels(0))
    full = DecoupledKD(warmup=0)(ours, theirs, drawn)
    term = DecoupledKD(warmup=4)
    torch.testing.assert_close(term(ours, theirs, drawn), full / 4)
    for epoch, share in enumerate([0.25, 0.5, 0.75, 1, 1]):
        term.begin_epoch(epoch, 10)
        torch.testing.assert_close(term(ours, theirs, drawn), share * full)
    tckd, nckd = decoupled(ours.logits, theirs.logits, drawn.label, 4.0)
    torch.testing.assert_close(full, tckd + 8 * nckd)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"dkd": {"alpha": -1}}, "dkd: alpha must be a finite number >= 0, got -1"),
        ({"dkd": {"beta": "8"}}, "dkd: beta must be a finite number >= 0, got the text '8'"),
        ({"dkd": {"temperature": 0}}, "dkd: temperature must be a finite number > 0, got 0"),
        ({"dkd": {"warmup": 1.5}}, "dkd: warmup must be a whole number >= 0, got 1.5"),
    ],
)
def test_dkd_refuses_settings_out_of_range(loss, message):
    with pytest.raises(UserError) as caught:
        parse_loss(loss)
    assert str(caught.value).startswith(message)
