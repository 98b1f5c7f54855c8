"""pkt: its probabilities, digits in float32, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import batch, maps, ready, seeds
from hypothesis import given, settings
from torch.nn import functional as F

from kdstream.batch import Outputs
from kdstream.errors import UserError
from kdstream.objectives import OBJECTIVES
from kdstream.objectives.pkt import neighbours


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_pkt_neighbours_are_probabilities_of_cosines(seed):
    features = maps(5, 8, seed=seed)
    found = neighbours(features, 1e-7)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.sum(dim=1), torch.ones(5).double())
    kernel = torch.stack([F.cosine_similarity(features[i : i + 1], features) for i in range(5)]).add(1) / 2
    torch.testing.assert_close(found.float(), kernel / kernel.sum(dim=1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_pkt_keeps_its_digits_in_float32_where_student_and_teacher_almost_agree():
    teacher = maps(16, 64)
    student = teacher + 0.01 * maps(16, 64, seed=1)
    term, values, gradients = ready("pkt"), [], []
    for dtype in (torch.float32, torch.float64):
        leaf = student.to(dtype).requires_grad_()
        values.append(term(Outputs(leaf, {"penultimate": leaf}), Outputs(leaf, {"penultimate": teacher}), batch(16)))
        gradients.append(torch.autograd.grad(values[-1], leaf)[0].double())
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[1].abs().max()


def test_pkt_refuses_settings():
    with pytest.raises(UserError, match=r"^pkt: eps must be a finite number > 0, got 0"):
        OBJECTIVES.find("pkt")(eps=0)
