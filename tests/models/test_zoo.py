"""What all of kdstream's own networks promise (their values are tested against the golden files)."""

from __future__ import annotations

import math

import pytest
import torch
from every import EVERY
from torch import nn

from kdstream.errors import UserError
from kdstream.models import MODELS, build
from kdstream.models.taps import Tapped

FAMILIES = {
    "resnet8": 32,
    "akamaster_resnet20": 32,
    "wrn_10_2": 32,
    "vgg8": 32,
    "MobileNetV2": 64,
    "ShuffleV1": 32,
    "ShuffleV2": 32,
    "ResNet50": 8,
}
"""One of each, and an image size at which a test of it is quick."""

each_family = pytest.mark.parametrize("name", FAMILIES)


def network(name: str, classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return build(name, classes)


def images(name: str) -> torch.Tensor:
    return torch.randn(2, 3, FAMILIES[name], FAMILIES[name], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, 32) for name in (MODELS if EVERY else FAMILIES)]
    + [(name, size) for name in FAMILIES for size in (64, 224)[not EVERY :]],
)
def test_sizes_and_class_counts(name, size):
    """(``kdstream models`` runs all names at the smallest of the sizes, in cli/test_models_command.py.)"""
    with torch.device("meta"):
        tapped = Tapped(build(name, 7), ["stem", "block1", "block2", "block3", "penultimate"])
        outputs = tapped(torch.zeros(2, 3, size, size))
    assert outputs.logits.shape == (2, 7)
    sides = [value.shape[-1] for tap, value in outputs.features.items() if tap != "penultimate"]
    assert sides == sorted(sides, reverse=True)
    assert outputs.features["penultimate"].shape == (2, tapped.classifier.in_features)


@each_family
def test_odd_and_oblong_images(name):
    with torch.device("meta"):
        assert build(name, 7)(torch.zeros(2, 3, 33, 47)).shape == (2, 7)


@each_family
@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (3, 32, 32), (2, 32, 32, 3), (2, 3, 0, 32)])
def test_other_inputs_are_refused_with_their_shape(name, shape):
    with pytest.raises(UserError, match=rf"^{name} takes images \[N,3,H,W\].*, not \[{', '.join(map(str, shape))}\]$"):
        network(name)(torch.zeros(shape))


def test_too_small_an_image_is_refused_with_the_size_that_fits():
    with pytest.raises(
        UserError, match=r"^vgg8 takes images \[N,3,H,W\] of at least 8 x 8 pixels, not \[2, 3, 7, 8\]$"
    ):
        network("vgg8")(torch.zeros(2, 3, 7, 8))
    assert network("vgg8")(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "vgg8"])
def test_one_pixel_is_enough(name):
    assert network(name).eval()(torch.zeros(2, 3, 1, 1)).shape == (2, 5)


@each_family
def test_the_classifier_of_the_penultimate_gives_the_logits(name):
    module = network(name).eval()
    with torch.no_grad():
        outputs = Tapped(module, ["penultimate"])(images(name))
        again = module.get_submodule(module.classifier_path)(outputs.features["penultimate"])
    torch.testing.assert_close(again, outputs.logits)


@each_family
def test_nothing_is_changed_in_place(name):
    """The promise of ``inplace = False``: without a copy the taps have the values that a copy has."""
    module = network(name).eval()
    with torch.no_grad():
        plain = Tapped(module, module.taps)(images(name))
        module.inplace = True  # makes Tapped copy
        copied = Tapped(module, module.taps)(images(name))
    for tap, value in copied.features.items():
        assert torch.equal(plain.features[tap], value), tap


@pytest.mark.parametrize("name", ["resnet8", "akamaster_resnet20", "vgg8", "ShuffleV1", "ResNet50"])
def test_pre_is_the_block_before_its_relu(name):
    module = network(name).eval()
    with torch.no_grad():
        features = Tapped(module, module.taps)(images(name)).features
    blocks = [tap.removesuffix(".pre") for tap in features if tap.endswith(".pre")]
    assert blocks == [tap for tap in features if tap.startswith("block") and not tap.endswith(".pre")]
    for block in blocks:
        assert (features[f"{block}.pre"] < 0).any()
        assert torch.equal(features[f"{block}.pre"].relu(), features[block]), block


@each_family
def test_the_classifier_reads_the_average_of_the_map(name):
    module = network(name).eval()
    with torch.no_grad():
        features = Tapped(module, ["map", "penultimate"])(images(name)).features
    torch.testing.assert_close(features["map"].mean((2, 3)), features["penultimate"])


@each_family
def test_every_parameter_is_trained(name):
    module = network(name)
    module(images(name)).square().sum().backward()
    untrained = [key for key, parameter in module.named_parameters() if parameter.grad is None]
    assert not untrained


@pytest.mark.parametrize("name", FAMILIES if EVERY else ["resnet8", "MobileNetV2", "ShuffleV1"])
def test_one_graph_under_compile(name):
    """The check of the input costs a compiled network nothing: no graph break."""
    module = network(name).eval()
    compiled = torch.compile(Tapped(module, ["block1", "penultimate"]), backend="eager", fullgraph=True)
    with torch.no_grad():
        outputs, plain = compiled(images(name)), module(images(name))
    torch.compiler.reset()
    torch.testing.assert_close(outputs.logits, plain)
    assert outputs.features.keys() == {"block1", "penultimate"}


def test_a_compiled_network_refuses_with_the_same_words():
    compiled = torch.compile(network("vgg8"), backend="eager")
    with pytest.raises(UserError, match=r"^vgg8 takes images .* not \[2, 3, 4, 4\]$"):
        compiled(torch.zeros(2, 3, 4, 4))
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_4", "vgg8", "MobileNetV2", "ResNet50"])
def test_initialisation_counts_outgoing_connections(name):
    for layer in network(name).modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 20_000:
            outgoing = layer.out_channels * math.prod(layer.kernel_size)
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / outgoing), rel=0.05)
            assert layer.bias is None or (layer.bias == 0).all()
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()


def test_initialisation_of_linear_layers():
    for name in ("vgg8", "MobileNetV2"):
        module = network(name, 100)
        linear = module.get_submodule(module.classifier_path)
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert (linear.bias == 0).all()
    assert (network("wrn_10_1").fc.bias == 0).all()


def test_initialisation_of_option_a_counts_incoming_connections():
    module = network("akamaster_resnet20", 100)
    assert module.layer3[0].conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)
    assert module.linear.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
