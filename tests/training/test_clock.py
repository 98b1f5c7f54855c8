"""The clock of an epoch: shares of waiting within 0..1, and every second and image counted once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdstream.training import clock as module
from kdstream.training.clock import Clock
from kdstream.training.state import State

STEPS = st.lists(
    st.tuples(st.floats(0.01, 10), st.floats(0, 1), st.integers(1, 99), st.booleans()), min_size=1, max_size=9
)


@given(steps=STEPS)
def test_every_second_and_image_is_counted_once(steps):
    """Of steps (seconds, share of them spent waiting, images, whether a checkpoint follows)."""
    now, stream, state = [100.0], SimpleNamespace(wait_seconds=5.0), State(seconds=7, images=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "perf_counter", lambda: now[0])
        clock = Clock(stream, began=now[0])
        stream.wait_seconds = 0.0
        clock.waited = 0.0
        saved = now[0]
        for seconds, share, images, saves in steps:
            now[0] += seconds
            stream.wait_seconds += share * seconds
            assert clock.tick(images) == pytest.approx(share, abs=1e-6)
            assert clock.since_save() == pytest.approx(now[0] - saved)
            if saves:
                clock.count(state)
                clock.saves()
                saved = now[0]
        clock.count(state)
        row = clock.row(4)
    took, images = sum(step[0] for step in steps), sum(step[2] for step in steps)
    assert state.seconds == pytest.approx(7 + took)
    assert state.images == 3 + images
    assert row == pytest.approx(
        {
            "epoch": 4,
            "images_per_s": images / took,
            "seconds": took,
            "wait_share": sum(seconds * share for seconds, share, *_ in steps) / took,
        }
    )
    assert stream.wait_seconds == 0


def test_a_wait_that_began_before_the_clock_is_none_of_its_steps(monkeypatch):
    now, stream = [0.0], SimpleNamespace(wait_seconds=50.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    clock = Clock(stream, began=now[0])
    now[0] = 2.0
    assert clock.tick(1) == 0
    stream.wait_seconds += 9  # more than the step took, as where readers are waited for together
    now[0] = 3.0
    assert clock.tick(1) == 1
