"""ResNet-50 for small images: other depths, and what cannot be built."""

from __future__ import annotations

import pytest
import torch

from kdstream.errors import UserError
from kdstream.models import build


def test_other_bottleneck_resnets_by_dotted_path():
    with torch.device("meta"):
        module = build("kdstream.models.zoo.cifar_resnet50:CifarBottleneckResNet", 100, blocks=[3, 4, 23, 3])
        resnet50 = build("ResNet50", 100)
    assert module.taps["block3.pre"] == "layer3.22.relu3:input"
    added = sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in resnet50.parameters())
    assert added == 17 * 1_117_184  # ResNet-101 has 17 blocks more of 256 channels


def test_another_number_of_stages_is_refused():
    with pytest.raises(UserError, match="four stages"):
        build("kdstream.models.zoo.cifar_resnet50:CifarBottleneckResNet", 10, blocks=[1])
