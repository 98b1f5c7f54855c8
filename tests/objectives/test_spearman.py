"""spearman: exact and soft ranks, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from builders import correlated, loss, seeds
from hypothesis import given
from scipy import stats

from kdstream.errors import UserError
from kdstream.objectives.spearman import Spearman, exact_rank


@given(seed=seeds)
def test_exact_coefficients_are_those_of_statistics(seed):
    student, teacher = correlated(seed)
    found = Spearman(ranks="exact").coefficients(student, teacher)
    for ours, theirs, rho in zip(student, teacher, found, strict=True):
        assert rho.item() == pytest.approx(stats.spearmanr(ours, theirs).statistic, abs=1e-9)


def test_exact_ranks_share_ties():
    assert exact_rank(torch.tensor([[2.0, 7.0, 2.0, 1.0]])).tolist() == [[2.5, 4.0, 2.5, 1.0]]


def test_small_strength_gives_exact_ranks_and_large_none():
    student, teacher = correlated(3, classes=100)
    exact = loss(Spearman(ranks="exact"), student, teacher)
    torch.testing.assert_close(loss(Spearman(strength=1e-8), student, teacher), exact, rtol=1e-3, atol=0)
    assert loss(Spearman(strength=1.0), student, teacher) < 1e-6 * exact
    assert loss(Spearman(strength=1e-4), student, teacher) == loss(Spearman(), student, teacher)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -1}, "spearman: strength must be a finite number > 0, got -1"),
        ({"ranks": "hard"}, "spearman: ranks must be soft or exact, got 'hard'"),
        ({"temperature": "4"}, "spearman: temperature must be a finite number > 0, got the text '4'"),
    ],
)
def test_spearman_refuses(settings, message):
    with pytest.raises(UserError) as caught:
        Spearman(**settings)
    assert str(caught.value).startswith(message)
