"""pearson, spearman and cmkd: what must hold for any logits, and the line that each mistake gets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import distributed

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import Task
from kdstream.objectives.cmkd import CorrelationMatching, global_mean
from kdstream.objectives.pearson import Pearson, correlation
from kdstream.objectives.spearman import Spearman, exact_rank

SEEDS = st.integers(0, 2**31)
TERMS = {
    "pearson": Pearson(),
    "spearman": Spearman(strength=0.002),
    "spearman, exact": Spearman(ranks="exact"),
    "cmkd": CorrelationMatching(strength=0.002),
    "cmkd, softened": CorrelationMatching(strength=0.002, entropy_of="softened", zscore=False),
}
EVERY_TERM = pytest.mark.parametrize("name", TERMS)


def logits(seed: int, count: int = 6, classes: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(count, classes, dtype=torch.float64, generator=generator) for _ in range(2))
    return student, student / 2 + teacher


def loss(term, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return term(Outputs(student), Outputs(teacher), None)


@EVERY_TERM
@given(seed=SEEDS)
def test_bounds_equality_and_permutation(name, seed):
    term, (student, teacher) = TERMS[name], logits(seed)
    most = 2 * (term.beta + term.gamma) if name.startswith("cmkd") else 2
    value = loss(term, student, teacher)
    assert 0 <= value <= most
    assert loss(term, teacher, teacher).abs() < 1e-9
    classes = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(term, student[:, classes], teacher[:, classes]), value)
    samples = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(term, student[samples], teacher[samples]), value)


@EVERY_TERM
@given(seed=SEEDS, scale=st.floats(0.1, 10), shift=st.floats(-20, 20))
def test_neither_shift_nor_scale_of_the_student_counts(name, seed, scale, shift):
    term, (student, teacher) = TERMS[name], logits(seed)
    scale = scale if getattr(term, "zscore", True) else 1
    torch.testing.assert_close(
        loss(term, scale * student + shift, teacher), loss(term, student, teacher), rtol=1e-6, atol=1e-8
    )


@given(seed=SEEDS)
def test_coefficients_are_those_of_statistics(seed):
    student, teacher = logits(seed)
    for ours, theirs, r, rho in zip(
        student,
        teacher,
        correlation(student, teacher),
        TERMS["spearman, exact"].coefficients(student, teacher),
        strict=True,
    ):
        assert r.item() == pytest.approx(stats.pearsonr(ours, theirs).statistic, abs=1e-9)
        assert rho.item() == pytest.approx(stats.spearmanr(ours, theirs).statistic, abs=1e-9)


def test_exact_ranks_share_ties():
    assert exact_rank(torch.tensor([[2.0, 7.0, 2.0, 1.0]])).tolist() == [[2.5, 4.0, 2.5, 1.0]]


def test_small_strength_gives_exact_ranks_and_large_none():
    student, teacher = logits(3, classes=100)
    exact = loss(Spearman(ranks="exact"), student, teacher)
    torch.testing.assert_close(loss(Spearman(strength=1e-8), student, teacher), exact, rtol=1e-3, atol=0)
    assert loss(Spearman(strength=1.0), student, teacher) < 1e-6 * exact
    assert loss(Spearman(strength=1e-4), student, teacher) == loss(Spearman(), student, teacher)


@pytest.mark.parametrize(("temperature", "least", "most"), [(4, 0.5, 0.8), (1, 0.3, 1.2)])
@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_at_the_default_strength_spearman_pulls_about_as_much_as_pearson(classes, temperature, least, most):
    student, teacher = logits(0, 32, classes)
    student.requires_grad_()
    pulls = [
        torch.autograd.grad(loss(term(temperature=temperature), student, teacher), student)[0].norm()
        for term in (Spearman, Pearson)
    ]
    assert least < pulls[0] / pulls[1] < most


@given(seed=SEEDS)
def test_cmkd_is_its_parts_by_the_teachers_entropy(seed):
    student, teacher = logits(seed)
    term = CorrelationMatching(beta=5, gamma=2, strength=0.002)
    probability = teacher.softmax(dim=1)
    entropies = -(probability * probability.log()).sum(dim=1)
    expected = torch.zeros((), dtype=torch.float64)
    for n in range(6):
        row = student[n : n + 1], teacher[n : n + 1]
        both = loss(TERMS["pearson"], *row), loss(TERMS["spearman"], *row)
        weights = (5, 2) if entropies[n] >= entropies.mean() else (2, 5)
        expected += sum(weight * value for weight, value in zip(weights, both, strict=True)) / 6
    torch.testing.assert_close(loss(term, student, teacher), expected)


def test_the_mean_entropy_is_that_of_all_processes(monkeypatch):
    here, elsewhere = torch.tensor([1.0, 2.0]), torch.tensor([6.0])
    assert global_mean(here) == 1.5
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "all_reduce", lambda parts: parts.add_(torch.tensor([elsewhere.sum(), 1.0])))
    assert global_mean(here) == 3


@EVERY_TERM
@pytest.mark.parametrize("constant", ["student", "teacher"])
def test_constant_logits_stay_finite(name, constant):
    student, teacher = (values.float() for values in logits(1))
    (student if constant == "student" else teacher)[0] = 2.5
    value = loss(TERMS[name], student.requires_grad_(), teacher)
    assert value.isfinite()
    if value.requires_grad:
        value.backward()
        assert student.grad.isfinite().all()


@EVERY_TERM
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(name, dtype):
    student, teacher = (values.to(dtype) for values in logits(2))
    value = loss(TERMS[name], student.requires_grad_(), teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(TERMS[name], student.float(), teacher.float()))
    if value.requires_grad:
        value.backward()
        assert student.grad.isfinite().all()
        assert student.grad.abs().max() > 0


@EVERY_TERM
@pytest.mark.parametrize("count", [1, 2])
def test_few_samples(name, count):
    student, teacher = logits(4, count=count)
    value = loss(TERMS[name], student.requires_grad_(), teacher)
    assert value.isfinite()
    assert value.requires_grad == (name != "spearman, exact")


def task(student: int, teacher: int | None) -> Task:
    outputs = [None if classes is None else Outputs(torch.zeros(2, classes)) for classes in (student, teacher)]
    return Task(student, 2, 1, student_outputs=outputs[0], teacher_outputs=outputs[1])


@pytest.mark.parametrize("make", [Pearson, Spearman, CorrelationMatching])
def test_what_the_networks_must_have(make):
    make().setup(task(10, 10))
    with pytest.raises(UserError, match="needs a teacher"):
        make().setup(task(10, None))
    with pytest.raises(UserError, match="the student has 10 classes and the teacher 9"):
        make().setup(task(10, 9))
    with pytest.raises(UserError, match="needs at least 2, the student has 1"):
        make().setup(task(1, 1))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (Pearson, {"temperature": 0}, "pearson: temperature must be a finite number > 0, got 0"),
        (Pearson, {"zscore": 1}, "pearson: zscore must be true or false, got 1"),
        (Spearman, {"strength": -1}, "spearman: strength must be a finite number > 0, got -1"),
        (Spearman, {"ranks": "hard"}, "spearman: ranks must be soft or exact, got 'hard'"),
        (Spearman, {"temperature": "4"}, "spearman: temperature must be a finite number > 0, got the text '4'"),
        (CorrelationMatching, {"beta": -1}, "cmkd: beta must be a finite number >= 0, got -1"),
        (CorrelationMatching, {"gamma": None}, "cmkd: gamma must be a finite number >= 0, got None"),
        (CorrelationMatching, {"strength": 0}, "cmkd: strength must be a finite number > 0, got 0"),
        (CorrelationMatching, {"entropy_of": "hot"}, "cmkd: entropy_of must be raw or softened, got 'hot'"),
    ],
)
def test_mistakes(make, settings, message):
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert str(caught.value).startswith(message)
