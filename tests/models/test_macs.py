"""Counting parameters and multiply-adds, against published numbers and a count by hand."""

from __future__ import annotations

import pytest
from torchvision import models as torchvision_models

from kdstream.errors import UserError
from kdstream.models.macs import cost


def test_a_count_by_hand():
    """VGG-8 has a 3x3 convolution a block, at 32, 16, 8, 4 and 4 pixels, and a linear layer."""
    layers = ((3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4), (512, 512, 4))
    convolutions = sum(9 * inputs * outputs * side * side for inputs, outputs, side in layers)
    assert cost("vgg8", 100, 32).macs == convolutions + 512 * 100


def test_depthwise_and_grouped_convolutions_count_their_own_channels_only():
    with_stem = 24 * 3 * 32 * 32
    first = 54 * 24 * 32 * 32 + 54 * 9 * 16 * 16 + 216 * 54 // 3 * 16 * 16
    second = 60 * 240 // 3 * 16 * 16 + 60 * 9 * 16 * 16 + 240 * 60 // 3 * 16 * 16
    total = with_stem + first + 3 * second
    for inputs, outputs, units, side in ((240, 480, 8, 8), (480, 960, 4, 4)):  # the stages 2 and 3 likewise
        area = side * side
        middle = (outputs - inputs) // 4
        total += middle * inputs // 3 * 4 * area + middle * 9 * area + (outputs - inputs) * middle // 3 * area
        middle = outputs // 4
        total += (units - 1) * area * (middle * outputs // 3 + middle * 9 + outputs * middle // 3)
    assert cost("ShuffleV1", 100, 32).macs == total + 960 * 100


def test_published_cifar_counts():
    assert cost("akamaster_resnet56", 10, 32).macs == pytest.approx(125.49e6, rel=1e-3)
    assert cost("akamaster_resnet20", 10, 32).macs == pytest.approx(40.55e6, rel=1e-3)
    assert cost("wrn_28_10", 10, 32).macs == pytest.approx(5.24e9, rel=2e-3)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_16", "regnet_x_400mf"])
def test_torchvisions_own_counts(name):
    published = torchvision_models.get_model_weights(name).DEFAULT.meta
    counted = cost(name, 1000, 224)
    assert counted.parameters == published["num_params"]
    assert counted.macs / 1e9 == pytest.approx(published["_ops"], rel=2e-3)


def test_taps_with_path_and_shape():
    taps = cost("resnet8", 10, 64).taps
    assert taps["block2.pre"] == ("layer2.0.relu2:input", [32, 32, 32])
    assert taps["penultimate"] == ("fc:input", [64])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vgg8", 4, r"^vgg8 takes images \[N,3,H,W\] of at least 8 x 8 pixels, not \[1, 3, 4, 4\]$"),
        ("vit_b_16", 32, r"^model 'vit_b_16' cannot take 32 x 32 images: Wrong image height! Expected 224"),
        ("inception_v3", 32, r"^model 'inception_v3' cannot take 32 x 32 images: "),
        ("resnet9", 32, r"^unknown model 'resnet9'"),
    ],
)
def test_what_cannot_be_counted(name, size, message):
    with pytest.raises(UserError, match=message):
        cost(name, 10, size)
