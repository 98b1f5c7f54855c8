"""Results: which network an epoch chooses, and what best.pt must be to be exported."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from jobs import recipe_of, run, run_and_kill
from torch import nn

from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.training.checkpoint import load_checkpoint, save_checkpoint
from kdstream.training.folder import BEST
from kdstream.training.metrics import MetricsLog, read_metrics
from kdstream.training.results import Results
from kdstream.training.state import State


def results(folder, export: str = "best", network: str = "student", export_all: bool = False) -> Results:
    """Of a student and a peer, after epoch 3, which was the best."""
    recipe = SimpleNamespace(name="job", export=export, export_network=network, export_all=export_all, shown=dict)
    identity = SimpleNamespace(recipe=recipe, folder=folder, fingerprint="own", without_code="plain")
    networks = {"student": nn.Linear(2, 3), "peer1": nn.Linear(2, 4)}
    for name, net in networks.items():
        net.spec = {"name": name, "num_classes": net.out_features}
    setup = SimpleNamespace(networks=networks, probe=SimpleNamespace(image=torch.zeros(2, 3, 8, 8)))
    train = SimpleNamespace(classes=["a", "b", "c"], mean=(0.5,) * 3, std=(0.2,) * 3)
    place = SimpleNamespace(is_main_process=True, num_processes=1)
    best = {"top1": 50.0, "epoch": 3, "network": "student", "tops": {"student": 50.0, "peer1": 60.0}}
    return Results(identity, setup, train, place, Display(enabled=False), State(epoch=3, best=best))


@pytest.mark.parametrize("export_all", [False, True])
def test_the_best_epoch_comes_back(tmp_path, export_all):
    made = results(tmp_path, export_all=export_all)
    made.save_best()
    expected = {name: net.state_dict() for name, net in made.setup.networks.items() if export_all or name == "student"}
    read = made.read_best()
    assert read.keys() == expected.keys()
    about = load_checkpoint(tmp_path / BEST)["deployed"]["about"]
    assert (about["spec"]["name"], about["classes"], about["image_size"]) == ("student", ["a", "b", "c"], [8, 8])
    assert all(read[name][key].equal(value) for name, state in expected.items() for key, value in state.items())


def test_an_epoch_that_is_not_the_best_or_another_process_writes_nothing(tmp_path):
    made = results(tmp_path)
    made.state.epoch = 4
    made.save_best()
    made.state.epoch, made.accelerator.is_main_process = 3, False
    made.save_best()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "another"}, "is of another training, or not of student after epoch 3"),
        ({"epoch": 2}, "is of another training, or not of student after epoch 3"),
        ({"network": "peer1"}, "is of another training, or not of student after epoch 3"),
        ({"state": {"weight": torch.zeros(3, 2)}}, "does not hold the weights of student"),
    ],
)
def test_a_best_pt_of_something_else_is_refused(tmp_path, change, message):
    made = results(tmp_path)
    with pytest.raises(UserError, match=r"best\.pt is missing, and export: best asks for it: put back the right one"):
        made.read_best()
    state = {
        "fingerprint": "plain",
        "network": "student",
        "epoch": 3,
        "state": made.setup.networks["student"].state_dict(),
    }
    save_checkpoint(state, tmp_path / BEST)
    assert made.read_best().keys() == {"student"}
    save_checkpoint({**state, **change}, tmp_path / BEST)
    with pytest.raises(UserError, match=message):
        made.read_best()


def test_the_students_best_epoch_stands_in_for_a_cohorts(tmp_path):
    rows = [("fitnet.hint", 90, 10), ("main", 40, 70), ("main", 55, 60), ("main", 50, 80), ("main", 99, 99)]
    with MetricsLog(tmp_path, None) as log:
        for epoch, (phase, student, peer) in enumerate(rows, 1):
            row = {"phase": phase, "epoch": epoch, "step": epoch, "val/top1": student, "val/peer1/top1": peer}
            log.write("epoch", row)
    made = results(tmp_path, export="last")
    made.state.epoch = 4  # the last row is of an epoch that no checkpoint holds
    made.state.best = {"top1": 80, "epoch": 4, "network": "peer1", "tops": {"student": 50, "peer1": 80}}
    made.settle_best()
    assert made.state.best == {"top1": 55, "epoch": 3, "network": "student", "tops": {"student": 55, "peer1": 60}}
    other = results(tmp_path, export="best")
    other.state.best["network"] = "peer1"
    with pytest.raises(UserError, match="holds the weights of peer1, not the student's"):
        other.settle_best()


def test_it_stops_early_and_a_killed_one_as_one_that_was_not(digits, tmp_path):
    settings = {"epochs": 8, "student": "jobs:Plain"}
    run(recipe_of(digits, tmp_path / "whole", **settings))
    rows = read_metrics(tmp_path / "whole")
    best, waited, expected = -1.0, 0, 8
    for row in rows:
        if row["val/top1"] > best + (1.0 if best >= 0 else 0):
            best, waited = row["val/top1"], 0
        else:
            waited += 1
        if waited == 2:
            expected = row["epoch"]
            break
    assert expected < 8, "this training never rests: choose another learning rate"
    stopping = {**settings, "early_stop": {"patience": 2, "min_delta": 1}}
    (result,) = run(recipe_of(digits, tmp_path / "early", **stopping))
    assert result["epochs"] == expected
    assert result["stopped_early"] == {"of": 8, "top1": best, "count": 2}
    assert result["top1"] == rows[expected - 1]["val/top1"]
    found = read_metrics(tmp_path / "early")
    assert [row["val/top1"] for row in found] == [row["val/top1"] for row in rows[:expected]]
    killed = recipe_of(digits, tmp_path / "killed", **stopping)
    run_and_kill(killed, "job", 5 * expected - 2)
    run(killed)
    weights = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("early", "killed")]
    assert weights[0] == weights[1]
    (tmp_path / "killed" / "result.json").unlink()  # killed when all was trained and nothing exported
    (again,) = run(killed)
    clock = ("seconds", "images_per_s", "memory")
    assert {k: v for k, v in again.items() if k not in clock} == {k: v for k, v in result.items() if k not in clock}
    assert "stopped_early" not in json.loads((tmp_path / "whole" / "result.json").read_text())
