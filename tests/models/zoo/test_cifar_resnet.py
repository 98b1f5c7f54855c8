"""The CIFAR ResNets: sizes, shapes and taps (their values are tested against the golden files)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.models.zoo.cifar_resnet import PadShortcut


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet8", 78_042), ("resnet14", 175_258), ("resnet20", 272_474), ("resnet26", 369_690)],
)
def test_parameters_with_10_classes(name, parameters):
    assert sum(p.numel() for p in build(name, 10).parameters()) == parameters


@pytest.mark.parametrize("size", [8, 9, 32, 64])
def test_any_input_size(size):
    tapped = Tapped(build("resnet8", 10), ["stem", "block1", "block2", "block3.pre", "penultimate"])
    outputs = tapped(torch.randn(2, 3, size, size))
    half, quarter = math.ceil(size / 2), math.ceil(size / 4)
    assert outputs.logits.shape == (2, 10)
    assert {name: tuple(value.shape) for name, value in outputs.features.items()} == {
        "stem": (2, 16, size, size),
        "block1": (2, 16, size, size),
        "block2": (2, 32, half, half),
        "block3.pre": (2, 64, quarter, quarter),
        "penultimate": (2, 64),
    }


def test_taps_are_what_their_names_say():
    torch.manual_seed(0)
    module = build("resnet14", 5)
    outputs = Tapped(module, list(module.taps))(torch.randn(2, 3, 16, 16))
    for block in ("block1", "block2", "block3"):
        assert (outputs.features[f"{block}.pre"] < 0).any()
        torch.testing.assert_close(outputs.features[f"{block}.pre"].relu(), outputs.features[block], rtol=0, atol=0)
    torch.testing.assert_close(outputs.features["block3"].mean((2, 3)), outputs.features["penultimate"])
    torch.testing.assert_close(module.fc(outputs.features["penultimate"]), outputs.logits)


def test_nothing_is_changed_in_place():
    """The promise of ``inplace = False``: without a copy the taps have the values that a copy has."""
    torch.manual_seed(0)
    module = build("resnet14", 5).eval()
    images = torch.randn(2, 3, 16, 16)
    plain = Tapped(module, list(module.taps))(images)
    module.inplace = True  # makes Tapped copy
    copied = Tapped(module, list(module.taps))(images)
    for name, value in copied.features.items():
        assert torch.equal(plain.features[name], value), name


def test_initialisation():
    torch.manual_seed(0)
    module = build("resnet8x4", 10)
    weight = module.layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.01)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


def test_own_widths():
    module = build("resnet8", 3, widths=[4, 6, 8, 10])
    assert module.spec["widths"] == [4, 6, 8, 10]
    assert module.fc.in_features == 10


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"depth": 9}, r"6n \+ 2 layers .*not 9"),
        ({"depth": 2}, "not 2"),
        ({"depth": 8, "widths": [4]}, "four positive"),
    ],
)
def test_impossible_architectures(kw, message):
    with pytest.raises(UserError, match=message):
        build("kdstream.models.zoo.cifar_resnet:CifarResNet", 10, **kw)


def test_option_a_takes_every_second_pixel_and_pads_both_sides():
    x = torch.arange(2 * 3 * 3.0).reshape(1, 2, 3, 3)
    out = PadShortcut(2, 4, 2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert (out[:, [0, 3]] == 0).all()
    assert torch.equal(out[:, 1:3], x[:, :, [0, 2]][:, :, :, [0, 2]])


def test_option_a_has_no_parameters_in_its_shortcuts():
    with torch.device("meta"):
        module = build("akamaster_resnet20", 10)
    assert not [key for key in module.state_dict() if "downsample" in key]
    assert module.classifier_path == "linear"


def test_option_a_cannot_shrink():
    with pytest.raises(UserError, match="cannot shrink the width from 16 to 8"):
        build("akamaster_resnet20", 10, widths=[16, 8, 32, 64])
