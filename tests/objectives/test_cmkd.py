"""cmkd: pearson and spearman by the teacher's entropy, whose mean is that of all processes, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import correlated, loss, seeds
from hypothesis import given
from torch import distributed

from kdstream.errors import UserError
from kdstream.objectives.cmkd import CorrelationMatching, global_mean
from kdstream.objectives.pearson import Pearson
from kdstream.objectives.spearman import Spearman


@given(seed=seeds)
def test_cmkd_is_its_parts_by_the_teachers_entropy(seed):
    student, teacher = correlated(seed)
    term = CorrelationMatching(beta=5, gamma=2, strength=0.002)
    probability = teacher.softmax(dim=1)
    entropies = -(probability * probability.log()).sum(dim=1)
    expected = torch.zeros((), dtype=torch.float64)
    for n in range(6):
        row = student[n : n + 1], teacher[n : n + 1]
        both = loss(Pearson(), *row), loss(Spearman(strength=0.002), *row)
        weights = (5, 2) if entropies[n] >= entropies.mean() else (2, 5)
        expected += sum(weight * value for weight, value in zip(weights, both, strict=True)) / 6
    torch.testing.assert_close(loss(term, student, teacher), expected)


def test_the_mean_entropy_is_that_of_all_processes(monkeypatch):
    here, elsewhere = torch.tensor([1.0, 2.0]), torch.tensor([6.0])
    assert global_mean(here) == 1.5
    term = CorrelationMatching(beta=5, gamma=2)
    assert term.weights(here)[0].tolist() == [2, 5]
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "all_reduce", lambda parts: parts.add_(torch.tensor([elsewhere.sum(), 1.0])))
    assert global_mean(here) == 3
    assert term.weights(here)[0].tolist() == [2, 2]
    term.over_slices = True
    assert term.weights(here)[0].tolist() == [2, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1}, "cmkd: beta must be a finite number >= 0, got -1"),
        ({"gamma": None}, "cmkd: gamma must be a finite number >= 0, got None"),
        ({"strength": 0}, "cmkd: strength must be a finite number > 0, got 0"),
        ({"entropy_of": "hot"}, "cmkd: entropy_of must be raw or softened, got 'hot'"),
    ],
)
def test_cmkd_refuses(settings, message):
    with pytest.raises(UserError) as caught:
        CorrelationMatching(**settings)
    assert str(caught.value).startswith(message)
