"""Wide ResNets: sizes, what the pre-activation taps are, dropout."""

from __future__ import annotations

import pytest
import torch

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("wrn_10_1", 120, 85_000),
        ("wrn_16_1", 120, 182_216),
        ("wrn_28_1", 200, 381_848),
        ("wrn_64_1", 200, 965_144),
        ("wrn_10_2", 10, 303_706),
        ("wrn_16_2", 10, 691_674),
        ("wrn_40_2", 10, 2_243_546),
        ("wrn_28_10", 10, 36_479_194),  # Zagoruyko and Komodakis 2016, Table 4: 36.5M
    ],
)
def test_published_parameter_counts(name, classes, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name, classes).parameters()) == parameters


def test_taps_are_what_their_names_say():
    torch.manual_seed(0)
    module = build("wrn_16_2", 5).eval()
    for norm in (module.bn1, module.block2.layer[0].bn1, module.block3.layer[0].bn1):
        torch.nn.init.normal_(norm.bias)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features = Tapped(module, module.taps)(images).features
        assert torch.equal(features["stem"], module.conv1(images))
        assert torch.equal(features["block1.pre"], module.block2.layer[0].bn1(features["block1"]))
        assert torch.equal(features["block2.pre"], module.block3.layer[0].bn1(features["block2"]))
        assert torch.equal(features["block3.pre"], module.bn1(features["block3"]))
        torch.testing.assert_close(features["block3.pre"].relu().mean((2, 3)), features["penultimate"])
    assert all((features[block] < 0).any() for block in ("block1", "block2", "block3"))


def test_a_shortcut_convolution_sees_the_activated_input():
    torch.manual_seed(0)
    block = build("wrn_10_2", 5).block1.layer[0].eval()
    x = torch.randn(2, 16, 4, 4)
    with torch.no_grad():
        torch.nn.init.zeros_(block.conv2.weight)
        assert torch.equal(block(x), block.convShortcut(block.bn1(x).relu()))


def test_width_1_has_no_shortcut_convolution_in_the_first_stage():
    module = build("wrn_16_1", 5)
    have = [key for key in module.state_dict() if "convShortcut" in key]
    assert have == ["block2.layer.0.convShortcut.weight", "block3.layer.0.convShortcut.weight"]


def test_dropout_stands_before_the_second_convolution_and_only_in_training():
    torch.manual_seed(0)
    module = build("wrn_16_1", 5, dropout=0.3)
    assert module.spec["dropout"] == 0.3
    assert list(module.state_dict()) == list(build("wrn_16_1", 5).state_dict())
    block = module.block2.layer[1]
    seen = {}
    block.relu2.register_forward_hook(lambda _m, _x, output: seen.update(before=output))
    block.conv2.register_forward_pre_hook(lambda _m, args: seen.update(after=args[0]))
    images = torch.randn(8, 3, 16, 16)
    module(images)
    positive = seen["before"] > 0
    dropped = positive & (seen["after"] == 0)
    assert dropped.sum().item() / positive.sum().item() == pytest.approx(0.3, abs=0.02)
    kept = positive & ~dropped
    torch.testing.assert_close(seen["after"][kept], seen["before"][kept] / 0.7)
    module.eval()
    module(images)
    assert torch.equal(seen["after"], seen["before"])


def test_any_depth_and_width_by_dotted_path():
    with torch.device("meta"):
        module = build("kdstream.models.zoo.wrn:WideResNet", 10, depth=22, width=3)
        assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert module.fc.in_features == 192
    assert len(module.block1.layer) == 3


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"depth": 12, "width": 1}, r"6n \+ 4 layers .*not 12"),
        ({"depth": 4, "width": 1}, "not 4"),
        ({"depth": "16", "width": 1}, "not 16"),
        ({"depth": 16, "width": 0}, "whole number from 1, not 0"),
        ({"depth": 16, "width": 1.5}, "not 1.5"),
        ({"depth": 16, "width": 1, "dropout": 1}, r"in \[0, 1\), not 1"),
        ({"depth": 16, "width": 1, "dropout": -0.1}, "not -0.1"),
    ],
)
def test_impossible_architectures(kw, message):
    with pytest.raises(UserError, match=message):
        build("kdstream.models.zoo.wrn:WideResNet", 10, **kw)
