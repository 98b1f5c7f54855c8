"""ITRD: bounds of its entropies and correlations, what they do not depend on, and its settings."""

from __future__ import annotations

import math

import pytest
import torch
from builders import batch, penultimate
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import Task
from kdstream.objectives.itrd import ITRD, correlation, mutual_information, standardise


def random(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def term_of(ours: Tensor, theirs: Tensor, **settings) -> ITRD:
    torch.manual_seed(0)
    term = ITRD(**settings)
    term.setup(Task(3, 9, 1, *(penultimate(features[:2].float().detach()) for features in (ours, theirs))))
    return term


sizes = {
    "count": st.integers(2, 8),
    "ours": st.integers(1, 6),
    "theirs": st.integers(1, 6),
    "seed": st.integers(0, 999),
}


@given(**sizes)
def test_the_joint_entropy_is_no_less_than_the_students_and_both_are_bounded(count, ours, theirs, seed):
    student, teacher = random(count, ours, seed), random(count, theirs, seed + 1)
    loss = float(mutual_information(student, teacher))
    # Gram matrices of trace 1 have a squared norm from 1/N (entropy log2 N) to 1 (entropy 0), and a product with the
    # teacher's similarities, which are at most 1, only lowers it.
    assert -1e-12 <= loss <= 1 - 1 / count + 1e-12
    # The two ends: a student that tells all samples alike, before a teacher that tells all apart ...
    one = torch.ones(count, ours, dtype=torch.float64)
    assert float(mutual_information(one, torch.eye(count, dtype=torch.float64))) == pytest.approx(1 - 1 / count)
    # ... and a teacher that has nothing to add.
    assert float(mutual_information(student, one)) == pytest.approx(0, abs=1e-12)


@given(**sizes)
def test_mutual_information_is_renyis_of_order_two_without_logarithms(count, ours, theirs, seed):
    student, teacher = random(count, ours, seed), random(count, theirs, seed + 1)
    entropies = []
    grams = [features / features.norm(dim=1, keepdim=True) for features in (student, teacher)]
    grams = [features @ features.T for features in grams]
    for gram in (grams[0], grams[0] * grams[1]):
        values = torch.linalg.eigvalsh(gram / gram.trace()).clamp(min=0)
        entropies.append(values.square().sum().log2().neg())
        assert -1e-9 <= entropies[-1] <= math.log2(count) + 1e-9
    expected = 2 ** -entropies[0] - 2 ** -entropies[1]
    torch.testing.assert_close(mutual_information(student, teacher), expected, atol=1e-12, rtol=1e-9)


@given(**sizes)
def test_mutual_information_depends_on_directions_alone(count, ours, theirs, seed):
    student, teacher = random(count, ours, seed), random(count, theirs, seed + 1)
    rotation, _ = torch.linalg.qr(random(ours, ours, seed + 2))
    scale = 1 + random(count, 1, seed + 3).abs()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    changed = mutual_information((student @ rotation * scale)[order], (3 * teacher)[order])
    torch.testing.assert_close(changed, mutual_information(student, teacher), atol=1e-12, rtol=1e-9)


@given(
    count=st.integers(2, 8),
    width=st.integers(1, 6),
    alpha=st.sampled_from([0.5, 1.01, 1.5, 3]),
    seed=st.integers(0, 999),
)
def test_correlation_is_bounded_and_lowest_for_features_that_agree(count, width, alpha, seed):
    student, teacher = random(count, width, seed), random(count, width, seed + 1)
    # Correlations end at (N-1)/N, since sums are divided by N and variances by N-1.
    lowest = math.log2(width) - 2 * alpha * math.log2(count)
    highest = math.log2(width) + 2 * alpha * math.log2((2 * count - 1) / count)
    value = float(correlation(student, teacher, alpha))
    assert lowest - 1e-6 <= value <= highest + 1e-6
    shift, scale = random(1, width, seed + 2), 1 + random(1, width, seed + 3).abs()
    assert float(correlation(student * scale + shift, teacher, alpha)) == pytest.approx(value, abs=1e-6)
    assert float(correlation(teacher * scale + shift, teacher, alpha)) == pytest.approx(lowest, abs=1e-5)
    assert float(correlation(-teacher, teacher, alpha)) == pytest.approx(highest, abs=1e-5)


def test_units_that_are_constant_do_not_correlate_and_have_no_gradient():
    student = random(6, 3, 0)
    student[:, 1] = 4.0
    student.requires_grad_()
    assert standardise(student)[:, 1].eq(0).all()
    teacher = random(6, 3, 1)
    teacher[:, 2] = 0.0  # a dead unit
    value = correlation(student, teacher, 1.5) + mutual_information(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    zero = torch.zeros(4, 3, requires_grad=True)
    (correlation(zero, zero, 1.5) + mutual_information(zero, zero)).backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize(("ours", "theirs"), [(5, 5), (4, 7)])
def test_the_term_is_the_weighted_sum_of_its_parts(ours, theirs):
    features = random(6, ours, 0).float(), random(6, theirs, 1).float()
    term = term_of(*features, beta_corr=3, beta_mi=0.5, alpha_it=1.01)
    embedded = term.embed["linear"](features[0])
    assert embedded.shape == features[1].shape
    similar = features[0] if ours == theirs else embedded  # embedded only where the widths differ
    expected = 3 * correlation(embedded, features[1], 1.01) + 0.5 * mutual_information(similar, features[1])
    torch.testing.assert_close(term(*map(penultimate, features), batch(6)), expected)


def test_a_part_of_weight_0_is_left_out():
    features = random(6, 4, 0).float(), random(6, 4, 1).float()
    both = [penultimate(value) for value in features]
    term = term_of(*features, beta_mi=0)
    torch.testing.assert_close(term(*both, batch(6)), 2 * term.correlation(*both))
    term = term_of(*features, beta_corr=0)
    torch.testing.assert_close(term(*both, batch(6)), mutual_information(*features))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_maps_are_flattened_and_small_batches_work(count):
    ours = torch.randn(count, 3, 2, 2, requires_grad=True)
    theirs = torch.randn(count, 5)
    term = ITRD(taps="block1", teacher_taps="penultimate")
    probe = Outputs(torch.zeros(2, 3), {"block1": torch.zeros(2, 3, 2, 2)})
    term.setup(Task(3, 9, 1, probe, penultimate(torch.zeros(2, 5))))
    assert term.embed["linear"].weight.shape == (5, 12)
    value = term(Outputs(torch.zeros(count, 3), {"block1": ours}), penultimate(theirs), batch(count))
    value.backward()
    assert value.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in (ours, *term.parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("theirs", [6, 9])
def test_half_precision_stays_finite_and_near(dtype, theirs):
    features = [value.to(dtype) for value in (30 * random(8, 6, 0), 30 * random(8, theirs, 1))]
    term = term_of(*features)
    with torch.no_grad():
        expected = term(*(penultimate(value.float()) for value in features), batch(8))
    features[0].requires_grad_()
    with torch.autocast("cpu", dtype):
        value = term(*map(penultimate, features), batch(8))
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    assert features[0].grad.isfinite().all()


def test_defaults_are_the_papers():
    term = ITRD()
    assert (term.alpha_it, term.beta_corr, term.beta_mi) == (1.5, 2, 1)
    assert (term.student_taps, term.teacher_taps) == (("penultimate",), ("penultimate",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha_it": 0.4}, "itrd: alpha_it must be a finite number >= 0.5, got 0.4"),
        ({"beta_corr": -1}, "itrd: beta_corr must be a finite number >= 0, got -1"),
        ({"beta_mi": float("nan")}, "itrd: beta_mi must be a finite number >= 0, got nan"),
        (
            {"beta_corr": 0, "beta_mi": 0},
            "itrd: beta_corr and beta_mi are both 0, which leaves nothing to learn; set one > 0",
        ),
        ({"taps": ["a", "b"]}, "itrd: taps must be one tap, got a, b"),
    ],
)
def test_mistakes_in_settings(settings, message):
    with pytest.raises(UserError) as caught:
        ITRD(**settings)
    assert str(caught.value) == message


def test_it_needs_a_teacher():
    with pytest.raises(UserError, match=r"^itrd: needs a teacher, but the job has none; name one or drop itrd"):
        ITRD().setup(Task(3, 9, 1, penultimate(torch.zeros(2, 4))))
