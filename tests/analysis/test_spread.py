"""Spread over seeds: by hand where that is possible, and as SciPy has it."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from kdstream.analysis.spread import Spread, as_if_spread_alike, paired, t_probability, t_quantile, welch


def test_mean_and_deviation_of_hand():
    found = Spread.of([70.0, 72.0, 74.0])
    assert (found.count, found.mean, found.std) == (3, 72.0, 2.0)
    assert str(found) == "72.00 ± 2.00"
    assert str(Spread.of([70.125])) == "70.12"
    assert Spread.of([70.0]).std is None


@pytest.mark.parametrize("degrees", [1, 1.3, 2, 2.7, 4, 9.5, 40, 400])
@pytest.mark.parametrize("t", [0.0, 0.3, -2.0, 5.0, 40.0])
def test_students_distribution(degrees, t):
    assert t_probability(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("degrees", [1, 2, 4, 9.5, 40, 10**6])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_its_quantiles(degrees, level):
    assert t_quantile(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=2e-3)


def test_paired_differences_are_taken_seed_by_seed():
    found = paired({0: 71.0, 1: 72.0, 2: 76.0, 7: 0.0}, {0: 70.0, 1: 70.0, 2: 73.0, 8: 0.0})
    assert (found.pairs, found.mean) == (3, 2.0)  # 1, 2, 3
    half = 4.302652729911275 / math.sqrt(3)  # the quantile of two degrees, of any table; the deviation is 1
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    assert str(found) == "+2.00 (-0.48 to +4.48)"
    single = paired({0: 1.0}, {0: 3.0})
    assert (str(single), single.low) == ("-2.00", None)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_welch_is_scipys():
    a, b = [70.1, 70.4, 70.2, 69.9], [71.0, 70.6, 71.9]
    assert welch(Spread.of(a), Spread.of(b)) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-3)
    assert welch(Spread.of(a), Spread.of([70.0])) is None
    assert welch(Spread.of([1.0, 1.0]), Spread.of([1.0, 1.0])) == 1.0
    assert welch(Spread.of([1.0, 1.0]), Spread.of([2.0, 2.0])) == 0.0


def test_a_printed_mean_without_spread_varies_as_ours():
    ours = Spread.of([70.0, 72.0, 74.0])  # deviation 2, two degrees of freedom
    expected = 2 * stats.t.sf(4 / (2 * math.sqrt(1 / 3 + 1 / 5)), 2)
    assert as_if_spread_alike(ours, 76.0, 5) == pytest.approx(expected)
    assert as_if_spread_alike(Spread.of([70.0]), 76.0, 5) is None
    assert as_if_spread_alike(Spread.of([70.0, 70.0]), 70.1, 1) == 0.0
