"""pearson: its coefficients are those of statistics, and what it refuses."""

from __future__ import annotations

import pytest
from builders import correlated, seeds
from hypothesis import given
from scipy import stats

from kdstream.errors import UserError
from kdstream.objectives.pearson import Pearson, correlation


@given(seed=seeds)
def test_correlation_is_that_of_statistics(seed):
    student, teacher = correlated(seed)
    for ours, theirs, r in zip(student, teacher, correlation(student, teacher), strict=True):
        assert r.item() == pytest.approx(stats.pearsonr(ours, theirs).statistic, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "pearson: temperature must be a finite number > 0, got 0"),
        ({"zscore": 1}, "pearson: zscore must be true or false, got 1"),
    ],
)
def test_pearson_refuses(settings, message):
    with pytest.raises(UserError) as caught:
        Pearson(**settings)
    assert str(caught.value).startswith(message)
