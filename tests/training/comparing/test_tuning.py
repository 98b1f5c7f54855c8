"""Tuning: what may be tried, as many trials for each method, and the best of them."""

from __future__ import annotations

import pytest

from kdstream.errors import UserError
from kdstream.training.comparing.methods import find_methods
from kdstream.training.comparing.setting import completed, read_setting
from kdstream.training.comparing.tuning import best_trial, split_fixed, trials_of

SETTING = completed(read_setting("shards/x", "resnet14", "resnet8", [], 5), (32, 32))


def methods(*names):
    return find_methods(names, "resnet14", "resnet8", False)


def test_a_single_value_is_a_setting_and_several_are_tried():
    tuned, fixed = split_fixed(["loss.kd.temperature=1,4", "epochs=40", "schedule.milestones=[5],[3, 4]"])
    assert tuned == {"loss.kd.temperature": [1, 4], "schedule.milestones": [[5], [3, 4]]}
    assert fixed == ["epochs=40"]


def test_every_method_has_as_many_trials_of_what_it_has():
    tuned = {"loss.kd.temperature": [1, 4, 12], "loss.kd.weight": [0.5, 0.9], "loss.wttm.gamma": [0.1, 0.2, 0.3, 0.4]}
    found = trials_of(methods("ckd", "wttm", "dist"), SETTING, tuned)
    assert {name: len(some) for name, some in found.items()} == {"kd": 4, "ckd": 4, "wttm": 4}
    assert found["wttm"] == [(f"loss.wttm.gamma={value}",) for value in (0.1, 0.2, 0.3, 0.4)]
    assert len(set(found["kd"])) == 4
    assert all(len(trial) == 2 for trial in found["kd"])
    assert found == trials_of(methods("wttm", "ckd"), SETTING, tuned), "drawn by the method alone"
    assert {len(some) for some in trials_of(methods("wttm"), SETTING, tuned, most=2).values()} == {2}


def test_a_setting_of_the_training_is_tuned_for_labels_too():
    found = trials_of(methods("dist"), SETTING, {"optimizer.lr": [0.1, 0.2], "loss.dist.tau": [1, 4]})
    assert list(found) == ["labels only", "kd", "dist"]
    assert {len(some) for some in found.values()} == {2}


def test_the_best_is_the_most_accurate_then_the_surest():
    a, b, c = ("a=1",), ("a=2",), ("a=3",)
    reached = {a: {"top1": 50.0, "loss": 1.0}, b: {"top1": 60.0, "loss": 2.0}, c: {"top1": 60.0, "loss": 1.5}}
    assert best_trial(reached) == c


@pytest.mark.parametrize(
    ("items", "says"),
    [
        (["loss.kd.temprature=1,2"], "unknown setting 'temprature'.*'temperature'"),
        (["loss.kd.temperature=1,-2"], "loss.kd"),
        (["loss.crd.nce_t=1,2"], "no method has crd"),
        (["optimizer.l=1,2"], "unknown setting 'optimizer.l'"),
        (["data.path=a,b"], "tune loss.TERM.SETTING"),
        (["teacher.train.epochs=1,2"], "tune loss.TERM.SETTING"),
        (["loss=a,b"], "tune loss.TERM.SETTING"),
        (["loss.kd.temperature"], "write a setting and its values"),
        (["epochs=1,2", "epochs=3,4"], "twice"),
        (["epochs=1,1"], "twice"),
        (["epochs="], "no values"),
    ],
)
def test_mistakes(items, says):
    with pytest.raises(UserError, match=says):
        trials_of(methods(), SETTING, split_fixed(items)[0])


def test_the_stream_and_single_values_are_settings_of_all_trials():
    chain = "stream=decode | augment(inception, 64)"
    assert split_fixed(["loss.kd.temperature=1,4", "epochs=6", chain]) == (
        {"loss.kd.temperature": [1, 4]},
        ["epochs=6", chain],
    )
