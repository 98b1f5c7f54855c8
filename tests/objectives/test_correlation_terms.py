"""pearson, spearman and cmkd: what must hold for any logits, and the line that each mistake gets."""

from __future__ import annotations

import pytest
import torch
from builders import correlated, loss, seeds, task
from hypothesis import given
from hypothesis import strategies as st

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives.cmkd import CorrelationMatching
from kdstream.objectives.pearson import Pearson
from kdstream.objectives.spearman import Spearman

TERMS = {
    "pearson": Pearson(),
    "spearman": Spearman(strength=0.002),
    "spearman, exact": Spearman(ranks="exact"),
    "cmkd": CorrelationMatching(strength=0.002),
    "cmkd, softened": CorrelationMatching(strength=0.002, entropy_of="softened", zscore=False),
}


EVERY_TERM = pytest.mark.parametrize("name", TERMS)


@EVERY_TERM
@given(seed=seeds)
def test_bounds_equality_and_permutation(name, seed):
    term, (student, teacher) = TERMS[name], correlated(seed)
    most = 2 * (term.beta + term.gamma) if name.startswith("cmkd") else 2
    value = loss(term, student, teacher)
    assert 0 <= value <= most
    assert loss(term, teacher, teacher).abs() < 1e-9
    classes = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(term, student[:, classes], teacher[:, classes]), value)
    samples = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(term, student[samples], teacher[samples]), value)


@EVERY_TERM
@given(seed=seeds, scale=st.floats(0.1, 10), shift=st.floats(-20, 20))
def test_neither_shift_nor_scale_of_the_student_counts(name, seed, scale, shift):
    term, (student, teacher) = TERMS[name], correlated(seed)
    scale = scale if getattr(term, "zscore", True) else 1
    torch.testing.assert_close(
        loss(term, scale * student + shift, teacher), loss(term, student, teacher), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize(("temperature", "least", "most"), [(4, 0.5, 0.8), (1, 0.3, 1.2)])
@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_at_the_default_strength_spearman_pulls_about_as_much_as_pearson(classes, temperature, least, most):
    student, teacher = correlated(0, 32, classes)
    student.requires_grad_()
    pulls = [
        torch.autograd.grad(loss(term(temperature=temperature), student, teacher), student)[0].norm()
        for term in (Spearman, Pearson)
    ]
    assert least < pulls[0] / pulls[1] < most


@EVERY_TERM
@pytest.mark.parametrize("constant", ["student", "teacher"])
def test_constant_logits_stay_finite(name, constant):
    student, teacher = (values.float() for values in correlated(1))
    (student if constant == "student" else teacher)[0] = 2.5
    value = loss(TERMS[name], student.requires_grad_(), teacher)
    assert value.isfinite()
    if value.requires_grad:
        value.backward()
        assert student.grad.isfinite().all()


@EVERY_TERM
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(name, dtype):
    student, teacher = (values.to(dtype) for values in correlated(2))
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
    student, teacher = correlated(4, count=count)
    value = loss(TERMS[name], student.requires_grad_(), teacher)
    assert value.isfinite()
    assert value.requires_grad == (name != "spearman, exact")


@pytest.mark.parametrize("make", [Pearson, Spearman, CorrelationMatching])
def test_what_the_networks_must_have(make):
    one, nine, ten = (Outputs(torch.zeros(2, classes)) for classes in (1, 9, 10))
    make().setup(task(ten, ten))
    with pytest.raises(UserError, match="needs a teacher"):
        make().setup(task(ten, None))
    with pytest.raises(UserError, match="the student has 10 classes and the teacher 9"):
        make().setup(task(ten, nine))
    with pytest.raises(UserError, match="needs at least 2, the student has 1"):
        make().setup(task(one, one))
