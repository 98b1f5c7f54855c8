"""MobileNetV2: widths, expansion, linear blocks, and what cannot be built."""

from __future__ import annotations

import pytest
import torch

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped


def test_mobilenet_widths_and_expansion():
    with torch.device("meta"):
        module = build("MobileNetV2", 10, width=1.0, expansion=4)
        wide = build("MobileNetV2", 10, width=1.5)
    assert module.blocks[1][0].conv[0].weight.shape == (64, 16, 1, 1)
    assert module.blocks[6][0].conv[6].weight.shape[0] == 320
    assert module.classifier[0].in_features == 1280
    assert wide.classifier[0].in_features == 1920


def test_mobilenet_blocks_are_linear():
    torch.manual_seed(0)
    module = build("MobileNetV2", 10).eval()
    with torch.no_grad():
        features = Tapped(module, module.taps)(torch.randn(2, 3, 32, 32)).features
    assert all((features[f"block{block}"] < 0).any() for block in (1, 2, 3, 4))
    assert all(features[f"block{block}.pre"].equal(features[f"block{block}"]) for block in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("name", "kw", "message"),
    [
        ("MobileNetV2", {"width": 0.01}, "width of 1/16 or more, not 0.01"),
        ("MobileNetV2", {"expansion": 0}, "whole number from 1, not 0"),
    ],
)
def test_impossible_mobilenetv2(name, kw, message):
    with pytest.raises(UserError, match=message):
        build(name, 10, **kw)
