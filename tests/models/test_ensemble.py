"""ensemble: the mean of the probabilities, each network by its own standardisation; taps of the first."""

from __future__ import annotations

import torch
from torch import nn

from kdstream.models import build
from kdstream.models.ensemble import Ensemble
from kdstream.models.taps import Tapped

STATISTICS = [((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), ((0.0, 0.0, 0.0), (1.0, 1.0, 0.0))]


def test_the_mean_of_probabilities_and_the_features_of_the_first():
    torch.manual_seed(0)
    first, second = build("resnet8", 7).eval(), nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 7)).eval()
    both = Ensemble([first, second], STATISTICS).eval()
    images = torch.rand(5, 3, 16, 16)
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS[0])
    third = torch.tensor([1.0, 1.0, 1e-6])[:, None, None]  # as a channel's deviation of 0 counts everywhere
    with torch.no_grad():
        answers = [first((images - mean) / std).softmax(1), second(images / third).softmax(1)]
        found = Tapped(both, ["penultimate", "block2"])(images)
        alone = Tapped(first, ["penultimate", "block2"])((images - mean) / std)
    torch.testing.assert_close(found.logits.exp(), (answers[0] + answers[1]) / 2)
    torch.testing.assert_close(found.logits.exp().sum(1), torch.ones(5))
    for tap, value in alone.features.items():
        torch.testing.assert_close(found.features[tap], value)
    assert Tapped(both).classifier is first.fc
    assert both.spec["name"] == "resnet8 + Sequential"


def test_a_temperature_sees_the_power_of_the_mean():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(12, 4)) for _ in range(3)]
    images = torch.rand(6, 3, 2, 2)
    with torch.no_grad():
        logits = Ensemble(nets, [((0, 0, 0), (1, 1, 1))] * 3)(images)
        mean = torch.stack([net(images).softmax(1) for net in nets]).mean(0)
    power = mean ** (1 / 4)
    torch.testing.assert_close((logits / 4).softmax(1), power / power.sum(1, keepdim=True))
