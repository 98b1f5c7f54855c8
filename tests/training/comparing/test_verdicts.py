"""Verdicts: intervals that hold together, how many seeds would show a difference, and sentences that say no more."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kdstream.analysis.spread import t_quantile
from kdstream.training.comparing.methods import LABELS
from kdstream.training.comparing.verdicts import against, bonferroni, conclusions, ranked, seeds_needed

SEEDS = range(5)
BASE = [70.0, 70.4, 69.8, 70.1, 69.9]


def tops(**shifts):
    """Methods that are above labels only by so much, with a small noise of their own."""
    noise = np.random.default_rng(0).normal(0, 0.1, (len(shifts), 5))
    found = {LABELS: dict(zip(SEEDS, BASE, strict=True))}
    for own, (name, shift) in zip(noise, shifts.items(), strict=True):
        found[name] = {seed: base + shift + e for seed, base, e in zip(SEEDS, BASE, own.tolist(), strict=True)}
    return found


def test_the_intervals_of_a_family_hold_together():
    """Where all true differences are 0, all intervals cover it in 95 % of families or more; unwidened ones do not."""
    rng, families = np.random.default_rng(1), 200
    covered = plain = 0
    for _ in range(families):
        found = {str(i): dict(enumerate(rng.normal(0, 1, 4).tolist())) for i in range(6)}
        intervals = against(found, "0").values()
        covered += all(one.low <= 0 <= one.high for one in intervals)
        ratio = t_quantile(0.95, 3) / t_quantile(bonferroni(5), 3)
        plain += all(abs(one.mean) <= (one.high - one.mean) * ratio for one in intervals)
    assert covered >= 0.93 * families
    assert plain < 0.9 * families


def test_seeds_that_are_said_to_be_needed_show_the_difference_as_often_as_is_said():
    values, first = dict(enumerate([1.0, 0.2, 0.9, 0.5])), dict(enumerate([0.0] * 4))
    count = seeds_needed(values, first, 0.99)
    mean, std = np.mean(list(values.values())), np.std(list(values.values()), ddof=1)
    drawn = np.random.default_rng(2).normal(mean, std, (2000, count))
    half = stats.t.ppf(0.995, count - 1) * drawn.std(1, ddof=1) / math.sqrt(count)
    shown = (np.abs(drawn.mean(1)) > half).mean()
    assert 0.72 < shown < 0.9
    assert seeds_needed(dict(enumerate([1.0, 0.2, 0.9, 0.5])), {7: 0.0}, 0.99) is None
    assert seeds_needed({0: 1.0, 1: -1.0}, {0: 0.0, 1: 0.0}, 0.95) == 1001


def test_what_is_said_of_a_clear_winner_and_of_a_loser():
    said = conclusions(tops(kd=1.0, dist=3.0, bad=-2.0))
    assert ranked(tops(kd=1.0, dist=3.0, bad=-2.0)) == ["dist", "kd", LABELS, "bad"]
    assert said[0].startswith("dist (+3.0") or said[0].startswith("dist (+2.9")
    assert "beat labels only" in said[0]
    assert "bad (-" in said[0]
    assert "is worse than labels only" in said[0]
    assert "dist (+" in said[1]
    assert "beats kd" in said[1]
    assert said[2] == "dist is best: it is separated from every other method."


def test_what_cannot_be_concluded_is_said_with_the_seeds_that_it_would_take():
    found = tops(kd=1.0, dist=1.05)
    assert list(against(found, "kd")) == ["dist"], "labels only are compared once"
    said = conclusions(found)
    best = ranked(found)[0]
    other = ({"kd", "dist"} - {best}).pop()
    assert "With 5 seeds nothing separates dist from kd" in said[1]
    assert said[2].startswith(f"{best} is highest, and with 5 seeds nothing separates it from {other}: about ")
    needed = seeds_needed(found[best], found[other], bonferroni(3))
    assert f"about {needed:,} seeds would be needed" in said[2]


def test_one_seed_concludes_nothing():
    (said,) = conclusions({LABELS: {0: 60.0}, "kd": {0: 70.0}})
    assert said.startswith("With one seed nothing can be concluded")
    assert conclusions({LABELS: {0: 60.0, 1: 61.0}}) == ["There is nothing to compare yet."]


def test_equal_differences_of_a_few_images_conclude_nothing():
    """On 75 images accuracies are multiples of 1.33: two seeds that agree say nothing of the third."""
    found = {LABELS: {0: 65.33, 1: 68.0}, "kd": {0: 68.0, 1: 70.67}}
    assert against(found, LABELS)["kd"].low is None
    assert seeds_needed(found["kd"], found[LABELS], 0.95) is None
    assert not any("beat" in sentence for sentence in conclusions(found))
    assert "nothing separates" in conclusions(found)[0]


def test_methods_without_a_common_seed_have_no_difference():
    assert against({LABELS: {0: 60.0}, "kd": {1: 70.0}}, LABELS) == {}
    assert against({"dist": {0: 1.0}}, "kd") == {}


@pytest.mark.parametrize("count", [1, 3, 12])
def test_bonferroni_of_hand(count):
    assert 1 - bonferroni(count) == pytest.approx(0.05 / count)
