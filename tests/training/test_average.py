"""The average of the weights: its equation, over a training, evaluated and exported beside the student."""

from __future__ import annotations

import json

import torch
from jobs import recipe_of, run
from torch import nn

import kdstream as kd
from kdstream.models.export import load_student
from kdstream.training import loop
from kdstream.training.average import averaged, follow
from kdstream.training.metrics import read_metrics


def test_weights_and_statistics_are_averaged_and_counts_copied():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = averaged(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        network[0].weight += 1
    network(torch.randn(8, 2))
    follow(average, network, 0.75)
    for name, value in average.state_dict().items():
        now = network.state_dict()[name]
        assert value.equal(now) if value.dtype == torch.int64 else value.allclose(0.75 * before[name] + 0.25 * now)
    assert not average.training
    assert not any(one.requires_grad for one in average.parameters())
    assert not average[1].running_mean.equal(before["1.running_mean"])
    follow(average, network, 0.0)
    assert all(map(torch.equal, average.state_dict().values(), network.state_dict().values()))


class Warming(kd.Term):
    """A phase of one epoch before the main one."""

    uses_teacher = False

    def phases(self):
        return (kd.Phase("warming", 1, 0.1),)

    def forward(self, student, teacher, batch):
        return student.logits.square().mean()


def test_a_training_exports_its_average(digits, tmp_path, monkeypatch):
    seen: list[tuple[float, torch.Tensor]] = []

    def watching(average, network, decay):
        seen.append((decay, network[3].weight.detach().clone()))
        follow(average, network, decay)

    monkeypatch.setattr(loop, "follow", watching)
    loss = {"ce": 1, f"{__name__}:Warming": 1}
    recipe = recipe_of(digits, tmp_path, student="jobs:Plain", loss=loss, epochs=1, ema=0.6, export_network="ema")
    (result,) = run(recipe)
    assert [decay for decay, _ in seen] == [0.0] * 5 + [0.6] * 5
    expected = seen[4][1]  # the student as the main phase found it
    for decay, weight in seen[5:]:
        expected = decay * expected + (1 - decay) * weight
    exported = load_student(tmp_path, trust_code=True)
    torch.testing.assert_close(exported[3].weight, expected)
    warming, main = read_metrics(tmp_path)
    assert warming["val/ema/top1"] == warming["val/top1"]
    assert main["val/ema/loss"] != main["val/loss"]
    assert result["top1"] == main["val/ema/top1"]
    assert result["exported"].startswith("ema (jobs:Plain")
    assert json.loads((tmp_path / "result.json").read_text())["networks"].keys() == {"student", "ema"}
