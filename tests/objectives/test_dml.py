"""Mutual learning: what its value is, that cohorts of any make train, end up exported and continue after a kill."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from jobs import recipe_of, run, run_and_kill, run_in_two, views
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import load_student
from kdstream.models.taps import Tapped
from kdstream.objectives import Task, parse_loss
from kdstream.objectives.dml import DeepMutualLearning, mutual_kl
from kdstream.training.checkpoint import load_checkpoint
from kdstream.training.checks import check
from kdstream.training.job import Job
from kdstream.training.metrics import read_metrics

MIXED = {"dml": {"peers": ["resnet14", {"model": "wrn_10_1", "options": {"dropout": 0.1}}]}}
COHORT = ("student", "peer1", "peer2")
COHORT_JOB = {"loss": MIXED, "export_network": "best", "export_all": True}


def set_up(**settings) -> DeepMutualLearning:
    torch.manual_seed(0)
    term = DeepMutualLearning(**settings)
    student = Tapped(build("resnet8", 10))
    term.setup(Task(10, 4, 1, student(views(2)), student=student, build=build))
    return term


# --- the value


@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 1000))
def test_it_is_zero_among_equals_and_blind_to_the_order_of_the_others(count, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = [3 * torch.randn(4, classes, generator=generator, dtype=torch.float64) for _ in range(count)]
    values = mutual_kl(logits, 4.0)
    assert all(value >= 0 for value in values)
    torch.testing.assert_close(mutual_kl([logits[0], *reversed(logits[1:])], 4.0)[0], values[0])
    same = mutual_kl([logits[0]] * count, 4.0)
    torch.testing.assert_close(torch.stack(same), torch.zeros(count, dtype=torch.float64), atol=1e-12, rtol=0)


def test_each_learns_from_the_mean_of_the_others_which_are_constants_to_it():
    logits = [torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    value = mutual_kl(logits, 2.0)[0]
    log_p = [F.log_softmax(z / 2, dim=1) for z in logits]
    expected = sum(F.kl_div(log_p[0], log_p[j], reduction="batchmean", log_target=True) for j in (1, 2)) / 2
    torch.testing.assert_close(value, expected)
    value.backward()
    assert logits[0].grad.any()
    assert logits[1].grad is None
    assert logits[2].grad is None


def test_the_sum_over_the_cohort():
    term = set_up(peers=2, temperature=3, labels=0.5).eval()
    batch = Batch(views(), torch.tensor([0, 1, 2, 3]), torch.arange(4))
    student = Outputs(torch.randn(4, 10))
    logits = [student.logits, *(peer(batch.image) for peer in term.peers().values())]
    expected = 9 * sum(mutual_kl(logits, 3.0)) + 0.5 * sum(F.cross_entropy(z, batch.label) for z in logits)
    torch.testing.assert_close(term(student, None, batch), expected)


def test_half_precision_stays_finite():
    logits = [torch.tensor([[60000.0, -60000.0, 0.0]], dtype=torch.float16).roll(i, 1) for i in range(2)]
    assert all(value.isfinite() and value.dtype == torch.float32 for value in mutual_kl(logits, 1.0))


# --- the cohort


def test_copies_are_of_the_students_architecture_and_begin_elsewhere():
    term = set_up(peers=3)
    networks = list(term.peers().values())
    assert [network.spec["name"] for network in networks] == ["resnet8"] * 3
    weights = [network.conv1.weight for network in networks]
    assert not any(weights[i].equal(weights[j]) for i in range(3) for j in range(i))


def test_a_cohort_of_other_architectures():
    term = set_up(**MIXED["dml"])
    assert {name: network.spec["name"] for name, network in term.peers().items()} == {
        "peer1": "resnet14",
        "peer2": "wrn_10_1",
    }
    assert term.peers()["peer2"].spec["dropout"] == 0.1
    assert [network.fc.out_features for network in term.peers().values()] == [10, 10]
    assert list(DeepMutualLearning(peers="resnet14").builds) == [{"name": "resnet14"}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peers": 0}, r"dml: peers must be a whole number >= 1, got 0"),
        ({"peers": []}, r"dml: peers is empty"),
        ({"peers": [3]}, r"dml: peers must hold names of networks or \{model: name.*got 3"),
        ({"peers": [{"name": "resnet8"}]}, r"dml: peers must hold names"),
        ({"peers": [{"model": "resnet8", "options": {"num_classes": 3}}]}, r"dml: peers must hold names"),
        ({"temperature": 0}, r"dml: temperature must be a finite number > 0"),
        ({"labels": -1}, r"dml: labels must be a finite number >= 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        parse_loss({"dml": settings})


def test_a_peer_that_does_not_exist_is_found_before_work_begins(tmp_path):
    with pytest.raises(UserError, match=r"unknown model 'resnet9': did you mean 'resnet8'\?"):
        check(recipe_of(tmp_path, tmp_path, loss={"dml": {"peers": ["resnet9"]}}))


# --- in training


def logits_of(folder) -> torch.Tensor:
    with torch.no_grad():
        return load_student(folder)(views())


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A job of three different networks, one process."""
    out = tmp_path_factory.mktemp("dml")
    (result,) = run(recipe_of(digits, out, **COHORT_JOB))
    return out, result


@pytest.mark.parametrize("processes", [1, 2])
def test_the_best_of_a_mixed_cohort_is_exported_and_all_where_wanted(digits, whole, tmp_path, processes):
    out, result = whole
    if processes == 2:
        out = tmp_path / "out"
        run_in_two(recipe_of(digits, out, **COHORT_JOB))
        (result,) = run(recipe_of(digits, out, **COHORT_JOB))  # what the two left behind
    rows = read_metrics(out)
    assert rows[-1]["loss"] < rows[0]["loss"]
    top1 = {name: rows[-1]["val/top1" if name == "student" else f"val/{name}/top1"] for name in COHORT}
    models = {"student": "resnet8", "peer1": "resnet14", "peer2": "wrn_10_1"}
    assert {name: about["top1"] for name, about in result["networks"].items()} == top1
    assert {name: about["model"] for name, about in result["networks"].items()} == models
    best = max(top1, key=top1.get)
    assert (result["network"], result["top1"], result["model"]) == (best, top1[best], models[best])
    state = load_checkpoint(out / "last.pt")["distiller"]
    own = {"student": "student.module.", "peer1": "terms.0.cohort.0.", "peer2": "terms.0.cohort.1."}
    for name in COHORT:
        network = build(models[name], 10, **({"dropout": 0.1} if name == "peer2" else {})).eval()
        network.load_state_dict({k.removeprefix(own[name]): v for k, v in state.items() if k.startswith(own[name])})
        with torch.no_grad():
            expected = network(views())
        assert logits_of(out / "peers" / name).equal(expected)
        if name == best:
            assert logits_of(out).equal(expected)


def test_the_report_shows_every_network_with_its_own_validation(whole):
    out, result = whole
    page = (out / "report.html").read_text()
    others = [name for name in COHORT if name != result["network"]]
    for name in others:
        assert f"<span>job: {name}<span class='tag'>peer</span>" in page
    assert page.count("<span class='tag'>peer</span>") == 2
    assert "<span class='tag best'>" not in page  # one student only: its peers do not compete


def test_the_best_epochs_networks_are_exported_together(digits, tmp_path):
    settings = {"loss": {"dml": {}}, "export": "best", "export_all": True, "epochs": 3, "optimizer": {"lr": 1.0}}
    settings["export_network"] = "best"
    (result,) = run(recipe_of(digits, tmp_path, **settings))
    rows = read_metrics(tmp_path)
    epoch = rows[result["best_epoch"] - 1]
    tops = {"student": epoch["val/top1"], "peer1": epoch["val/peer1/top1"]}
    assert {name: about["top1"] for name, about in result["networks"].items()} == tops
    assert result["top1"] == max(max(row["val/top1"], row["val/peer1/top1"]) for row in rows)
    assert logits_of(tmp_path).equal(logits_of(tmp_path / "peers" / result["network"]))


def test_killed_inside_of_training_it_ends_with_the_same_bits(digits, whole, tmp_path):
    recipe = recipe_of(digits, tmp_path / "out", **COHORT_JOB)
    run_and_kill(recipe, "job", step=7)  # within the second epoch
    assert not (tmp_path / "out" / "result.json").exists()
    assert load_checkpoint(tmp_path / "out" / "last.pt")["global_step"] == 7
    run(recipe)
    for name in ("metrics.jsonl", *(f"peers/{one}/student.safetensors" for one in COHORT), "student.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (whole[0] / name).read_bytes(), name


# --- which network leaves


class Guesses(nn.Module):
    """Learns nothing: always the same class."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("logits", 0.01 * F.one_hot(torch.tensor(0), num_classes).float())

    def forward(self, images):
        return SimpleNamespace(logits=self.scale * self.logits.expand(len(images), -1))


def test_the_student_that_was_asked_for_is_exported_though_a_peer_is_better(digits, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    guesses = f"{Path(__file__).stem}:Guesses"
    settings = {
        "student": guesses,
        "loss": {"dml": {"peers": ["resnet14"], "temperature": 1, "labels": 3}},
        "epochs": 4,
    }
    said = Console(file=io.StringIO(), width=300)

    def results(out, **more):
        recipe = recipe_of(digits, out, **settings, **more)
        return Job(recipe, Accelerator(cpu=True), Display(said)).run()[0]

    result = results(tmp_path / "a")
    tops = {name: about["top1"] for name, about in result["networks"].items()}
    assert tops["peer1"] > tops["student"] + 5
    assert (result["network"], result["model"], result["top1"]) == ("student", guesses, tops["student"])
    assert result["exported"] == f"student ({guesses})"
    assert result["best_top1"] == max(row["val/top1"] for row in read_metrics(tmp_path / "a"))
    assert isinstance(load_student(tmp_path / "a", trust_code=True), nn.Module)
    assert load_student(tmp_path / "a", trust_code=True).spec["name"] == guesses
    text = said.file.getvalue()
    assert f"exported: student ({guesses}), top-1 {tops['student']:.2f} %; peer1 reached {tops['peer1']:.2f} %" in text

    best = results(tmp_path / "b", export_network="best", export="best")
    assert (best["network"], best["exported"], best["model"]) == ("peer1", "peer1 (resnet14)", "resnet14")
    assert load_student(tmp_path / "b").spec["name"] == "resnet14"
    assert "job: peer1<" in (tmp_path / "b" / "report.html").read_text()

    # What an earlier version finished with the peer's weights is finished anew, from its last checkpoint.
    path = tmp_path / "a" / "result.json"
    path.write_text(json.dumps({**result, "network": "peer1", "top1": tops["peer1"]}))
    (tmp_path / "a" / "student.safetensors").unlink()
    again = results(tmp_path / "a")
    measured = {"seconds": 0, "memory": {}}  # (a process may have taken more by now)
    assert {**again, **measured} == {**result, **measured}
    assert load_student(tmp_path / "a", trust_code=True).spec["name"] == guesses
