"""The map before a classifier is found in every architecture; maps are compared as they are."""

from __future__ import annotations

import pytest
import torch
from joint_students import images, of

from kdstream.models.taps import Tapped
from kdstream.objectives.common.connectors import map_distance, pooled_maps


@pytest.mark.parametrize("name", ["vgg8", "resnet8x4", "wrn_10_1", "MobileNetV2", "ShuffleV1", "ShuffleV2", "resnet18"])
def test_the_map_before_the_classifier_is_found_in_every_architecture(name):
    network = of(name).eval()
    place = pooled_maps(network, images(size=32))[-1]
    with torch.no_grad():
        answered = Tapped(network, {"map": place.path, "penultimate": network.taps["penultimate"]})(images(size=32))
    torch.testing.assert_close(answered.features["map"].mean((2, 3)), answered.features["penultimate"])
    assert answered.features["map"].shape[1:] == place.shape


def test_maps_of_equal_size_are_compared_as_they_are():
    ours, theirs = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(map_distance(ours, theirs), (ours - theirs).square().mean())
