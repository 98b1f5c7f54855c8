"""MobileNetV1: its published size, where its taps lie, its widths."""

from __future__ import annotations

import pytest
import torch

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped


def test_published_size_and_maps():
    with torch.device("meta"):
        module = build("MobileNetV1", 1000).eval()
        features = Tapped(module, module.taps)(torch.zeros(1, 3, 224, 224)).features
    assert sum(p.numel() for p in module.parameters()) == 4_231_976
    shapes = {name: list(value.shape[1:]) for name, value in features.items() if not name.endswith(".pre")}
    assert shapes == {
        "stem": [32, 112, 112],
        "block1": [128, 56, 56],
        "block2": [256, 28, 28],
        "block3": [512, 14, 14],
        "block4": [1024, 7, 7],
        "map": [1024, 7, 7],
        "penultimate": [1024],
    }


@pytest.mark.parametrize(("width", "channels"), [(0.25, 256), (0.5, 512), (1 / 32, 32)])
def test_widths_scale_every_layer(width, channels):
    with torch.device("meta"):
        module = build("MobileNetV1", 10, width=width)
    assert module.fc.in_features == channels
    with pytest.raises(UserError, match=r"needs a width of 1/32 or more, not 0\.01"):
        build("MobileNetV1", 10, width=0.01)
