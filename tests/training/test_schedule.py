"""The learning rate: values worked out by hand, and what holds for every schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdstream.recipe import Schedule
from kdstream.training.schedule import learning_rate

schedules = st.builds(
    Schedule,
    name=st.sampled_from(["step", "cosine", "constant"]),
    milestones=st.lists(st.integers(1, 30), max_size=4),
    gamma=st.floats(0.01, 1),
    warmup=st.floats(0, 10),
) | st.builds(
    Schedule,
    name=st.just("cosine"),
    warmup=st.floats(1, 10),
    start_factor=st.floats(0, 1),
    end_factor=st.floats(0, 1),
)


def rates(schedule, epochs, steps=4, base=0.1):
    """At every step of a training."""
    return [
        learning_rate(schedule, base, epoch, (step + 1) / steps, epochs)
        for epoch in range(epochs)
        for step in range(steps)
    ]


def test_step_multiplies_after_each_milestone():
    schedule = Schedule(milestones=[150, 180, 210], gamma=0.1)
    at = {epoch: learning_rate(schedule, 0.05, epoch, 0.5, 240) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)}
    assert at == pytest.approx(
        {0: 0.05, 149: 0.05, 150: 5e-3, 179: 5e-3, 180: 5e-4, 209: 5e-4, 210: 5e-5, 239: 5e-5}, rel=1e-12
    )


def test_a_milestone_counts_from_the_first_to_the_last_step_of_its_epoch():
    schedule = Schedule(milestones=[3], gamma=0.5)
    assert learning_rate(schedule, 1.0, 2, 1.0, 5) == 1.0
    assert learning_rate(schedule, 1.0, 3, 1e-9, 5) == 0.5


def test_the_order_of_milestones_does_not_matter():
    assert rates(Schedule(milestones=[2, 5, 7]), 9) == rates(Schedule(milestones=[7, 2, 5]), 9)


def test_cosine_is_half_way_in_the_middle_and_zero_at_the_end():
    schedule = Schedule(name="cosine")
    assert learning_rate(schedule, 0.2, 4, 1.0, 10) == pytest.approx(0.1)
    assert learning_rate(schedule, 0.2, 9, 1.0, 10) == pytest.approx(0, abs=1e-12)
    assert learning_rate(schedule, 0.2, 2, 0.5, 10) == pytest.approx(0.2 * (1 + 2**-0.5) / 2)


def test_warm_up_is_linear_from_zero_and_cosine_begins_after_it():
    schedule = Schedule(name="cosine", warmup=2)
    assert learning_rate(schedule, 0.1, 0, 0.5, 12) == pytest.approx(0.025)
    assert learning_rate(schedule, 0.1, 1, 1.0, 12) == pytest.approx(0.1)
    assert learning_rate(schedule, 0.1, 6, 1.0, 12) == pytest.approx(0.05)
    constant = Schedule(name="constant", warmup=0.5)
    assert rates(constant, 2) == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])


def test_warm_up_may_outlast_the_training():
    assert rates(Schedule(name="cosine", warmup=4), 2)[-1] == pytest.approx(0.05)


def test_deits_warm_up_and_end():
    """Touvron et al. 2021: from 1e-6 to 1e-3 in five epochs, then by a cosine to 1e-5."""
    schedule = Schedule(name="cosine", warmup=5, start_factor=1e-3, end_factor=1e-2)
    at = [
        learning_rate(schedule, 1e-3, epoch, part, 305)
        for epoch, part in ((0, 1e-9), (2, 0.5), (4, 1), (154, 1), (304, 1))
    ]
    assert at == pytest.approx([1e-6, (1e-6 + 1e-3) / 2, 1e-3, (1e-3 + 1e-5) / 2, 1e-5], rel=1e-6)


@given(schedules, st.integers(1, 30), st.integers(1, 7))
def test_the_rate_is_between_zero_and_its_base(schedule, epochs, steps):
    assert all(0 <= rate <= 0.1 for rate in rates(schedule, epochs, steps))


@given(schedules, st.integers(1, 30))
def test_after_the_warm_up_the_rate_never_rises(schedule, epochs):
    after = [rate for i, rate in enumerate(rates(schedule, epochs)) if (i + 1) / 4 >= schedule.warmup]
    assert all(later <= earlier + 1e-15 for earlier, later in pairwise(after))


@given(schedules, st.integers(1, 20), st.floats(1e-6, 10))
def test_the_rate_is_proportional_to_its_base(schedule, epochs, base):
    unit = rates(schedule, epochs, base=1.0)
    assert rates(schedule, epochs, base=base) == pytest.approx([base * rate for rate in unit], rel=1e-9, abs=1e-15)
