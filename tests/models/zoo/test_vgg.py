"""VGG: its depths, where it pools, and what cannot be built."""

from __future__ import annotations

import pytest
import torch

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped


@pytest.mark.parametrize(("size", "side"), [(8, 1), (32, 4), (63, 7), (64, 4), (224, 14)])
def test_vgg_pools_before_its_last_block_from_64_pixels_on(size, side):
    with torch.device("meta"):
        features = Tapped(build("vgg8", 10), ["block3", "block4"]).eval()(torch.zeros(1, 3, size, size)).features
    assert features["block3"].shape[-1] == size // 8
    assert features["block4"].shape[-1] == side


@pytest.mark.parametrize(("name", "convolutions"), [("vgg8", 5), ("vgg11", 8), ("vgg13", 10), ("vgg16", 13)])
def test_vgg_depths(name, convolutions):
    with torch.device("meta"):
        module = build(name, 10)
    assert sum(value.ndim == 4 for value in module.state_dict().values()) == convolutions


@pytest.mark.parametrize(
    ("name", "kw", "message"),
    [
        ("kdstream.models.zoo.vgg:VGG", {"convolutions": [1, 1]}, "five blocks"),
        ("kdstream.models.zoo.vgg:VGG", {"convolutions": [1, 1, 1, 1, 0]}, "five blocks"),
    ],
)
def test_impossible_vgg(name, kw, message):
    with pytest.raises(UserError, match=message):
        build(name, 10, **kw)
