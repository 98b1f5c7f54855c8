"""dkd, nkd, wsld, label_smoothing and confidence_penalty: their identities, confident rows, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from builders import batch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES, parse_loss
from kdstream.objectives.ce import CrossEntropy
from kdstream.objectives.confidence_penalty import ConfidencePenalty
from kdstream.objectives.dkd import DecoupledKD, decoupled
from kdstream.objectives.kd import softened_kl
from kdstream.objectives.label_smoothing import LabelSmoothing
from kdstream.objectives.nkd import NormalisedKD, nontarget_cross_entropy, target_part
from kdstream.objectives.term import Task
from kdstream.objectives.wsld import WeightedSoftLabels, sample_weight

seeds = st.integers(0, 2**31 - 1)
temperatures = st.floats(0.5, 20)
NAMES = ("dkd", "nkd", "wsld", "label_smoothing", "confidence_penalty")


def logits(seed: int, n: int = 5, c: int = 7, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(seed: int, n: int = 5, c: int = 7) -> torch.Tensor:
    return torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))


# ----------------------------------------------------------------------------------------------------- dkd


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


# ----------------------------------------------------------------------------------------------------- nkd


def test_nkd_in_plain_probabilities():
    ours, theirs, label = logits(0, n=2, c=3), logits(1, n=2, c=3), torch.tensor([2, 0])
    others = [[0, 1], [1, 2]]
    target = -sum(
        theirs[n].softmax(0)[label[n]] * ours[n].log_softmax(0)[label[n]] for n in range(2)
    ) / 2  # fmt: skip
    rest = -sum((theirs[n, o] / 3).softmax(0) @ (ours[n, o] / 3).log_softmax(0) for n, o in enumerate(others)) / 2
    torch.testing.assert_close(target_part(ours, theirs, label), target)
    torch.testing.assert_close(nontarget_cross_entropy(ours, theirs, label, 3.0), rest)
    value = NormalisedKD()(Outputs(ours), Outputs(theirs), batch(label=label))
    torch.testing.assert_close(value, target + 3.5 * 9 * rest)


# ---------------------------------------------------------------------------------------------------- wsld


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


# --------------------------------------------------------------------------- label smoothing, confidence penalty


@given(seeds, st.floats(0, 1))
@settings(max_examples=20)
def test_label_smoothing_is_torchs(seed, epsilon):
    ours, label = logits(seed), labels(seed)
    value = LabelSmoothing(epsilon=epsilon)(Outputs(ours), None, batch(label=label))
    torch.testing.assert_close(value, F.cross_entropy(ours, label, label_smoothing=epsilon))


@given(seeds, st.floats(0, 2))
@settings(max_examples=20)
def test_confidence_penalty_is_cross_entropy_less_entropy(seed, eta):
    ours, label = logits(seed), labels(seed)
    value = ConfidencePenalty(eta=eta)(Outputs(ours), None, batch(label=label))
    entropy = torch.distributions.Categorical(logits=ours).entropy().mean()
    torch.testing.assert_close(value, F.cross_entropy(ours, label) - eta * entropy)


@pytest.mark.parametrize("term", [LabelSmoothing(epsilon=0), ConfidencePenalty(eta=0)])
def test_without_their_share_they_are_cross_entropy(term):
    ours, drawn = Outputs(logits(0)), batch(label=labels(0))
    assert term.uses_teacher is False
    torch.testing.assert_close(term(ours, None, drawn), CrossEntropy()(ours, None, drawn))


# ---------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_half_precision_and_extreme_logits_stay_finite(name, label):
    ours = torch.tensor([[600.0, -600.0, 0.0]], dtype=torch.float16, requires_grad=True)
    theirs = torch.tensor([[-600.0, 600.0, 0.0]], dtype=torch.float16)
    value = OBJECTIVES.find(name)()(Outputs(ours), Outputs(theirs), batch(label=torch.tensor([label])))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert ours.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_means_over_samples_in_any_order(name):
    ours, theirs, label = logits(0), logits(1), labels(0)
    term = OBJECTIVES.find(name)()
    value = term(Outputs(ours), Outputs(theirs), batch(label=label))
    rows = [slice(n, n + 1) for n in range(5)]
    singles = [term(Outputs(ours[row]), Outputs(theirs[row]), batch(label=label[row])) for row in rows]
    torch.testing.assert_close(torch.stack(singles).mean(), value)


@pytest.mark.parametrize("name", ["dkd", "nkd", "wsld"])
def test_a_teacher_of_the_same_classes_is_needed(name):
    term = OBJECTIVES.find(name)()
    ours = Outputs(torch.zeros(2, 10))
    term.setup(Task(10, 10, 1, ours, Outputs(torch.zeros(2, 10))))
    with pytest.raises(UserError, match=f"{name}: the student has 10 classes and the teacher 100"):
        term.setup(Task(10, 10, 1, ours, Outputs(torch.zeros(2, 100))))
    with pytest.raises(UserError, match=f"{name}: needs a teacher"):
        term.setup(Task(10, 10, 1, ours))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"dkd": {"alpha": -1}}, "dkd: alpha must be a finite number >= 0, got -1"),
        ({"dkd": {"beta": "8"}}, "dkd: beta must be a finite number >= 0, got the text '8'"),
        ({"dkd": {"temperature": 0}}, "dkd: temperature must be a finite number > 0, got 0"),
        ({"dkd": {"warmup": 1.5}}, "dkd: warmup must be a whole number >= 0, got 1.5"),
        ({"nkd": {"gamma": -1}}, "nkd: gamma must be a finite number >= 0, got -1"),
        ({"nkd": {"temperature": None}}, "nkd: temperature must be a finite number > 0, got None"),
        ({"wsld": {"temperature": 0}}, "wsld: temperature must be a finite number > 0, got 0"),
        ({"wsld": {"eps": 0}}, "wsld: eps must be a finite number > 0, got 0"),
        (
            {"label_smoothing": {"epsilon": 1.1}},
            "label_smoothing: epsilon must be a finite number >= 0 and at most 1, got 1.1",
        ),
        (
            {"label_smoothing": {"epsilon": -0.1}},
            "label_smoothing: epsilon must be a finite number >= 0 and at most 1, got -0.1",
        ),
        ({"confidence_penalty": {"eta": -1}}, "confidence_penalty: eta must be a finite number >= 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(loss, message):
    with pytest.raises(UserError) as caught:
        parse_loss(loss)
    assert str(caught.value).startswith(message)
