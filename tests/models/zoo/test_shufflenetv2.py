"""ShuffleNet V2: its unit equals the published one, other widths, and what cannot be built."""

from __future__ import annotations

import pytest
import torch

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.zoo.shufflenetv2 import Unit as UnitV2


def test_shuffle_v2_unit_equals_one_whose_relu_spares_the_untouched_half():
    """Values and the gradients that reach the ReLU before the unit, zeros in the untouched half among them."""
    torch.manual_seed(0)
    unit = UnitV2(8).double()
    raw = torch.randn(4, 8, 5, 5, dtype=torch.float64, requires_grad=True)

    def spared(x):
        untouched, out = x.chunk(2, 1)
        out = unit.bn2(unit.conv2(unit.relu1(unit.bn1(unit.conv1(out)))))
        out = unit.bn3(unit.conv3(out)).relu()
        joined = torch.cat([untouched, out], 1)
        return torch.stack([joined[:, :4], joined[:, 4:]], 2).flatten(1, 2)

    weight = torch.randn(4, 8, 5, 5, dtype=torch.float64)
    ours, theirs = unit(raw.relu()), spared(raw.relu())
    assert (raw < 0).any()
    assert torch.equal(ours, theirs)
    (mine,) = torch.autograd.grad((ours * weight).sum(), raw)
    (other,) = torch.autograd.grad((theirs * weight).sum(), raw)
    torch.testing.assert_close(mine, other)


def test_shuffle_v2_other_widths():
    with torch.device("meta"):
        module = build("ShuffleV2", 10, widths=[48, 96, 192, 1024])
        assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert module.spec["widths"] == [48, 96, 192, 1024]


@pytest.mark.parametrize(
    ("name", "kw", "message"),
    [
        ("ShuffleV2", {"widths": [47, 96, 192, 1024]}, "three even widths"),
        ("ShuffleV2", {"widths": [48]}, "three even widths"),
    ],
)
def test_impossible_shufflenetv2(name, kw, message):
    with pytest.raises(UserError, match=message):
        build(name, 10, **kw)
