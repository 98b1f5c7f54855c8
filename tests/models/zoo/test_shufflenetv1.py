"""ShuffleNet V1: what its units do with their input."""

from __future__ import annotations

import torch

from kdstream.models.zoo.shufflenetv1 import Unit as UnitV1


def test_shuffle_v1_first_unit_stands_beside_its_pooled_input():
    torch.manual_seed(0)
    unit = UnitV1(24, 48, 2, 1, 3).eval()
    x = torch.rand(2, 24, 5, 5)
    with torch.no_grad():
        out = unit(x)
    assert out.shape == (2, 48, 3, 3)
    pooled = torch.nn.functional.avg_pool2d(x, 3, 2, 1)
    assert torch.equal(out[:, 24:], pooled)


def test_shuffle_v1_second_unit_adds_its_input():
    unit = UnitV1(24, 24, 1, 3, 3).eval()
    torch.nn.init.zeros_(unit.bn3.weight)
    x = torch.randn(2, 24, 5, 5)
    with torch.no_grad():
        assert torch.equal(unit(x), x.relu())
