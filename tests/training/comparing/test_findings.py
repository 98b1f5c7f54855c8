"""Findings: values for programs and a page for people, in one order, of whatever is finished so far."""

from __future__ import annotations

import json

import pytest

from kdstream.training.comparing.findings import Found, as_json, page, tops
from kdstream.training.comparing.methods import find_methods

METHODS = find_methods(["dist", "at"], "resnet14", "resnet8", False)
TOPS = {"labels only": [70.0, 71.0, 72.0], "kd": [72.0, 73.5, 73.5], "dist": [74.0, 75.0, 76.0], "at": []}


def found():
    reached = {
        name: {
            seed: {
                "top1": top1,
                "loss": 1.0 + seed,
                "calibration_error": 5.0,
                "samples": 1000,
                "result": {"seconds": 60.0, "images_per_s": 100.0, "memory": {"process": 2**30, "device": 2**20}},
            }
            for seed, top1 in enumerate(values)
        }
        for name, values in TOPS.items()
    }
    tried = {("loss.dist.tau=1",): {"top1": 60.0, "loss": 2.0}, ("loss.dist.tau=4",): {"top1": 61.0, "loss": 2.0}}
    return [
        Found(
            method,
            ("loss.dist.tau=4",) if method.name == "dist" else (),
            tried if method.name == "dist" else {},
            reached[method.name],
        )
        for method in METHODS
    ]


def test_values_for_programs():
    plain = json.loads(json.dumps(as_json(found(), {"title": "t"})))
    assert [row["method"] for row in plain["methods"]] == ["dist", "kd", "labels only", "at"]
    dist, kd, labels, at = plain["methods"]
    assert dist["top1"] == {"mean": 75.0, "std": 1.0}
    assert (dist["over labels only"]["mean"], dist["over kd"]["mean"]) == (4.0, 2.0)
    assert dist["over labels only"]["low"] is None, "the same over labels by every seed: no spread is known"
    assert "over labels only" not in labels
    assert "over kd" not in kd
    assert (at["top1"], at["seeds"]) == (None, [])
    assert dist["tuned"] == ["loss.dist.tau=4"]
    assert [trial["top1"] for trial in dist["trials"]] == [60.0, 61.0]
    assert kd["by_seed"]["1"]["device"] == 2**20
    assert plain["level_of_each_interval"] == {"labels only": pytest.approx(0.975), "kd": pytest.approx(0.95)}


def test_the_page_leaves_out_what_is_not_there_yet():
    shown = page(found(), "t", "a", [("command", "c")], ["n"])
    assert [line.name for line in shown.lines] == ["dist", "kd", "labels only"]
    assert set(tops(found())) == {"dist", "kd", "labels only"}
    best = shown.lines[0]
    assert best.memory == 2**20, "of the GPU where there is one"
    assert best.source == "dist/dist/cifar100; best of 2 trials"
    assert best.setting == "1 ce + 2 dist(beta=1, gamma=1, tau=4), loss.dist.tau=4"
    facts = dict(shown.facts)
    assert "seeds 0 to 2" in facts["top-1"]
    assert "1,000 images" in facts["chance"]
    assert "± 1.37" in facts["chance"]  # sqrt(0.75 * 0.25 / 1000)
    assert facts["command"] == "c"
    assert shown.notes == ["n"]
