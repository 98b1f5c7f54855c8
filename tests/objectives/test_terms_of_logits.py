"""What terms of logits share, with labels and without: confident rows, half precision, far logits, their teacher."""

from __future__ import annotations

import pytest
import torch
from builders import batch, labels, logits, no_labels

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES
from kdstream.objectives.term import Task
from kdstream.objectives.ttm import TransformedTeacherMatching
from kdstream.objectives.wttm import WeightedTransformedTeacherMatching

LABELLED = ("dkd", "nkd", "wsld", "label_smoothing", "confidence_penalty")
UNLABELLED = ("ttm", "wttm", "renyi", "logit_mse")


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_half_precision_and_extreme_logits_stay_finite(name, label):
    ours = torch.tensor([[600.0, -600.0, 0.0]], dtype=torch.float16, requires_grad=True)
    theirs = torch.tensor([[-600.0, 600.0, 0.0]], dtype=torch.float16)
    value = OBJECTIVES.find(name)()(Outputs(ours), Outputs(theirs), batch(label=torch.tensor([label])))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert ours.grad.isfinite().all()


@pytest.mark.parametrize("name", UNLABELLED)
def test_half_precision_is_computed_in_float32(name):
    ours = torch.tensor([[300.0, -300.0, 0.0]], dtype=torch.float16, requires_grad=True)
    theirs = torch.tensor([[-300.0, 300.0, 0.0]], dtype=torch.float16)
    value = OBJECTIVES.find(name)()(Outputs(ours), Outputs(theirs), no_labels(1))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert ours.grad.isfinite().all()


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


@pytest.mark.parametrize("name", LABELLED)
def test_terms_are_means_over_samples_in_any_order(name):
    ours, theirs, label = logits(0), logits(1), labels(0)
    term = OBJECTIVES.find(name)()
    value = term(Outputs(ours), Outputs(theirs), batch(label=label))
    rows = [slice(n, n + 1) for n in range(5)]
    singles = [term(Outputs(ours[row]), Outputs(theirs[row]), batch(label=label[row])) for row in rows]
    torch.testing.assert_close(torch.stack(singles).mean(), value)


@pytest.mark.parametrize("name", ["dkd", "nkd", "wsld", *UNLABELLED])
def test_a_teacher_of_the_same_classes_is_needed(name):
    term = OBJECTIVES.find(name)()
    ours = Outputs(torch.zeros(2, 10))
    term.setup(Task(10, 10, 1, ours, Outputs(torch.zeros(2, 10))))
    with pytest.raises(UserError, match=f"{name}: the student has 10 classes and the teacher 100"):
        term.setup(Task(10, 10, 1, ours, Outputs(torch.zeros(2, 100))))
    with pytest.raises(UserError, match=f"{name}: needs a teacher"):
        term.setup(Task(10, 10, 1, ours))
