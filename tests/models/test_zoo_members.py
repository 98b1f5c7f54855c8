"""VGG, MobileNetV2, the ShuffleNets, ResNet-50 and option A: what sets each apart."""

from __future__ import annotations

import pytest
import torch

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.models.zoo.cifar_resnet import PadShortcut
from kdstream.models.zoo.shufflenetv1 import Unit as UnitV1
from kdstream.models.zoo.shufflenetv2 import Unit as UnitV2


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


def test_other_bottleneck_resnets_by_dotted_path():
    with torch.device("meta"):
        module = build("kdstream.models.zoo.cifar_resnet50:CifarBottleneckResNet", 100, blocks=[3, 4, 23, 3])
        resnet50 = build("ResNet50", 100)
    assert module.taps["block3.pre"] == "layer3.22.relu3:input"
    added = sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in resnet50.parameters())
    assert added == 17 * 1_117_184  # ResNet-101 has 17 blocks more of 256 channels


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


@pytest.mark.parametrize(
    ("name", "kw", "message"),
    [
        ("kdstream.models.zoo.vgg:VGG", {"convolutions": [1, 1]}, "five blocks"),
        ("kdstream.models.zoo.vgg:VGG", {"convolutions": [1, 1, 1, 1, 0]}, "five blocks"),
        ("MobileNetV2", {"width": 0.01}, "width of 1/16 or more, not 0.01"),
        ("MobileNetV2", {"expansion": 0}, "whole number from 1, not 0"),
        ("ShuffleV2", {"widths": [47, 96, 192, 1024]}, "three even widths"),
        ("ShuffleV2", {"widths": [48]}, "three even widths"),
        ("kdstream.models.zoo.cifar_resnet50:CifarBottleneckResNet", {"blocks": [1]}, "four stages"),
        ("akamaster_resnet20", {"widths": [16, 8, 32, 64]}, "cannot shrink the width from 16 to 8"),
    ],
)
def test_impossible_architectures(name, kw, message):
    with pytest.raises(UserError, match=message):
        build(name, 10, **kw)
