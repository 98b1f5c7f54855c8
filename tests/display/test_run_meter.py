from __future__ import annotations

import pytest

from kdstream.display.run_meter import RunMeter


def test_the_time_left_follows_the_epochs_that_were_measured():
    run = RunMeter("kd", total=4, done=0)
    run.start_epoch("main", 0, 4, steps=10, first_step=0, now=0.0)
    assert run.seconds_left(0.0) is None
    run.step = 5
    assert run.seconds_left(20.0) == pytest.approx(20 / 5 * 10 * 3.5)
    run.step = 10
    run.end_epoch({"loss": 1.0, "val/top1": 50.0}, now=40.0)
    assert run.seconds_left(40.0) == pytest.approx(40 * 3)


def test_an_epoch_that_was_resumed_counts_as_a_whole_one():
    run = RunMeter("kd", total=2, done=0)
    run.start_epoch("main", 0, 2, steps=10, first_step=8, now=0.0)
    run.step = 10
    run.end_epoch({}, now=3.0)
    assert run.seconds_left(3.0) == pytest.approx(15.0)


def test_the_bars_are_the_run_and_its_epoch():
    run = RunMeter("kd", total=4, done=1)
    run.start_epoch("main", 1, 4, steps=10, first_step=0, now=0.0)
    run.step = 5
    whole, epoch = run.rows(1.0)
    assert (whole.label, whole.count, whole.share) == ("kd", "2/4", 1.5 / 4)
    assert (epoch.label, epoch.count, epoch.share) == ("main", "5/10", 0.5)


def test_the_best_accuracy_is_of_the_phase_that_goes_on():
    run = RunMeter("kd", total=3, done=0)
    for epoch, (phase, top1) in enumerate([("hint", 90.0), ("main", 50.0), ("main", 40.0)]):
        run.start_epoch(phase, epoch % 2, 2, steps=1, first_step=0, now=float(epoch))
        run.end_epoch({"val/top1": top1}, now=epoch + 1.0)
    assert run.best_top1 == 50.0
    assert [piece.text for piece in run.top1_pieces()] == ["val 40.00%", "best 50.00%"]
