"""ONE: its value and schedule, which networks can be branched, and what is exported after training."""

from __future__ import annotations

import math
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from every import EVERY
from hypothesis import given
from hypothesis import strategies as st
from jobs import recipe_of, run, run_in_two, views
from torch import nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.branches import Branched
from kdstream.models.export import load_student
from kdstream.models.taps import Tapped
from kdstream.objectives import parse_loss
from kdstream.objectives.one import OnTheFlyNativeEnsemble, branch_cross_entropies, ensemble_kl
from kdstream.training.checkpoint import load_checkpoint
from kdstream.training.metrics import read_metrics


def draw(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 4), st.integers(2, 4), st.integers(2, 6), st.integers(0, 1000))
def test_the_divergence_is_zero_where_the_branches_agree_and_positive_elsewhere(samples, branches, classes, seed):
    logits = 3 * draw(samples, branches, classes, seed=seed)
    ensemble = logits.mean(1)
    assert ensemble_kl(logits, ensemble, 3.0) > 0
    agreeing = logits[:, :1].expand(-1, branches, -1)
    torch.testing.assert_close(
        ensemble_kl(agreeing, agreeing[:, 0], 3.0), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0
    )
    order = torch.randperm(branches, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(ensemble_kl(logits[:, order], ensemble, 3.0), ensemble_kl(logits, ensemble, 3.0))


def test_the_label_losses_reach_branches_and_ensemble_and_the_divergence_leaves_the_ensemble_alone():
    branches, ensemble, label = draw(4, 3, 5).requires_grad_(), draw(4, 5, seed=1).requires_grad_(), torch.arange(4)
    student = Outputs(ensemble, {"branches": branches, "ensemble": ensemble})
    batch = Batch(torch.zeros(4, 3, 1, 1), label, torch.arange(4))
    divergence = OnTheFlyNativeEnsemble(labels=0)(student, None, batch)
    (gradient,) = torch.autograd.grad(divergence, ensemble, allow_unused=True)
    assert gradient is None
    costs = [F.cross_entropy(branches[:, i], label) for i in range(3)]
    torch.testing.assert_close(branch_cross_entropies(branches, label), torch.stack(costs))
    value = OnTheFlyNativeEnsemble(labels=2)(student, None, batch)
    torch.testing.assert_close(value, divergence + 2 * (sum(costs) + F.cross_entropy(ensemble, label)))


def test_the_divergence_gains_its_weight_over_the_first_epochs():
    def gains(epochs, **settings):
        term = OnTheFlyNativeEnsemble(**settings)
        found = []
        for epoch in range(epochs):
            term.begin_epoch(epoch, epochs)
            found.append(term.gain)
        return found

    authors = gains(300)
    assert authors[40] == pytest.approx(math.exp(-5 * 0.5**2))
    assert authors[0] == pytest.approx(math.exp(-5))
    assert authors[79] < 1
    assert authors[80:] == [1.0] * 220
    assert gains(3, ramp=0) == [1.0] * 3
    assert gains(4, ramp=2) == pytest.approx([math.exp(-5), math.exp(-5 / 4), 1, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"branches": 1}, r"one: branches must be a whole number >= 2, got 1"),
        ({"export": "all"}, r"one: export must be branch, branches or ensemble, got 'all'"),
        ({"temperature": -1}, r"one: temperature must be a finite number > 0"),
        ({"ramp": -1}, r"one: ramp must be a finite number >= 0"),
        ({"labels": "1"}, r"one: labels must be a finite number >= 0"),
        ({"eps": -1}, r"one: eps must be a finite number >= 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        parse_loss({"one": settings})


STUDENTS = ["resnet8", "resnet8x4", "resnet20", "wrn_16_2", "wrn_10_1", "resnet26", "ResNet50", "resnet18"]


@pytest.mark.parametrize("name", STUDENTS)
def test_any_resnet_can_be_branched_and_its_first_branch_is_the_network_as_it_was(name):
    torch.manual_seed(0)
    network = build(name, 5)
    size = 64 if name == "resnet18" else 16
    images = torch.randn(2, 3, size, size)
    shared = {key: value.clone() for key, value in network.state_dict().items()}
    term = OnTheFlyNativeEnsemble(branches=2)
    branched = term.adapt(network, None, images, build)
    outputs = Tapped(branched, ["branches", "ensemble", "block1", "penultimate"]).eval()(images)
    assert outputs.features["branches"].shape == (2, 2, 5)
    first = term.deploy(branched)
    assert first.spec == network.spec
    state = first.state_dict()
    assert state.keys() == shared.keys()
    assert all(state[key].equal(value) for key, value in shared.items())
    plain = Tapped(network.eval(), ["block1", "penultimate"])(images)
    torch.testing.assert_close(outputs.features["branches"][:, 0], plain.logits)
    torch.testing.assert_close(outputs.logits, plain.logits)  # answers as the branch that will be exported
    for tap in ("block1", "penultimate"):
        torch.testing.assert_close(outputs.features[tap], plain.features[tap])
    # What is exported is trained: it shares its weights.
    assert {id(value) for value in first.parameters()} <= {id(value) for value in branched.parameters()}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mobilenet_v2", r"its stages \(taps block1, block2, \.\.\.\) are not direct layers of it"),
        ("MobileNetV2", r"its stages \(taps block1, block2, \.\.\.\) are not direct layers of it"),
        ("vgg8", r"its last stage \(relu4\) has no convolution"),
    ],
)
def test_a_network_without_such_stages_is_refused(name, why):
    with pytest.raises(UserError, match=rf"^{name} cannot be branched: {why}; take a ResNet or WRN$"):
        OnTheFlyNativeEnsemble().adapt(build(name, 5), None, torch.randn(2, 3, 32, 32), build)


class Backwards(nn.Module):
    """Its layers do not run in the order of their definition; with a value of its own where ``loose``."""

    taps = MappingProxyType({"block1": "early", "block2": "late"})
    classifier_path = "fc"

    def __init__(self, num_classes: int, loose: bool = False):
        super().__init__()
        self.early = nn.Conv2d(3, 3, 3, padding=1)
        self.late = nn.Conv2d(3, 3, 3, padding=1)
        self.middle = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3, num_classes)
        if loose:
            self.register_buffer("mean", torch.zeros(3, 1, 1))

    def forward(self, images):
        return self.fc(self.late(self.middle(self.early(images))).mean((2, 3)))


@pytest.mark.parametrize(("loose", "why"), [(False, r"its layers do not run in the order"), (True, r"its stages")])
def test_a_network_that_the_copies_would_change_is_refused(loose, why, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    network = build(f"{Path(__file__).stem}:Backwards", 5, loose=loose)
    with pytest.raises(UserError, match=rf"cannot be branched: {why}"):
        OnTheFlyNativeEnsemble().adapt(network, None, torch.randn(2, 3, 8, 8), build)


EXPORTED = [("resnet8", 1, "ensemble"), ("wrn_10_1", 1, "branch"), ("resnet8", 2, "branch")]
if EVERY:
    EXPORTED += [("resnet8", 1, "branch"), ("wrn_10_1", 1, "ensemble"), ("resnet8", 2, "ensemble")]


@pytest.mark.parametrize(("student", "processes", "export"), EXPORTED)
def test_branch_or_ensemble_is_trained_exported_and_comes_back(digits, tmp_path, student, processes, export):
    out = tmp_path / "out"
    recipe = recipe_of(digits, out, student=student, loss={"one": {"export": export}})
    if processes == 2:
        run_in_two(recipe)
    (result,) = run(recipe)
    rows = read_metrics(out)
    assert rows[-1]["loss/one"] < rows[0]["loss/one"]
    exported = load_student(out)
    alone = sum(p.numel() for p in build(student, 10).parameters())
    assert (result["params"] == alone) == (export == "branch")
    assert result["params"] == sum(p.numel() for p in exported.parameters())
    kind = "all its 3 branches" if export == "ensemble" else "the first of its 3 branches"
    assert result["exported"] == f"student ({student}, {kind})"
    assert isinstance(exported, Branched) == (export == "ensemble")
    # The network in training, from its checkpoint.
    network = Branched(10, {"name": student}, answer=export)
    state = load_checkpoint(out / "last.pt")["distiller"]
    network.load_state_dict({key.removeprefix("student.module."): value for key, value in state.items()})
    with torch.no_grad():
        torch.testing.assert_close(exported(views()), network.eval()(views()))
        features = Tapped(network, ["branches", "ensemble"])(views()).features
    expected = features["ensemble"] if export == "ensemble" else features["branches"][:, 0]
    torch.testing.assert_close(exported(views()), expected)


def test_an_exported_ensemble_teaches(digits, tmp_path):
    run(recipe_of(digits, tmp_path / "one", loss={"one": {"export": "ensemble"}}))
    (result,) = run(recipe_of(digits, tmp_path / "kd", teacher=str(tmp_path / "one"), loss={"ce": 1, "kd": 1}))
    assert math.isfinite(result["top1"])


def test_the_other_branches_are_networks_of_their_own():
    term = OnTheFlyNativeEnsemble(export="branches")
    network = term.adapt(build("resnet8", 10), None, views(), build)
    first = term.deploy(network)
    branches = Tapped(network.eval(), ["branches"])(views()).features["branches"]
    peers = term.peers()
    assert list(peers) == ["branch2", "branch3"]
    assert not list(term.parameters())  # trained as parts of the student
    for i, branch in enumerate([first, *peers.values()]):
        torch.testing.assert_close(branch.eval()(views()), branches[:, i])
    assert OnTheFlyNativeEnsemble().peers() == {}
