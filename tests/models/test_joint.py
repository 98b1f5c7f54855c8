"""A joint network: the student's map, pooled and connected, through the teacher's frozen classifier."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import views
from torch import nn
from torch.nn import functional as F

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.joint import Connector, JointNetwork, ReusedHead
from kdstream.models.taps import Tapped

HEAD = {"channels": 64, "width": 20, "kernels": [1, 3]}
BACKBONE = {"name": "resnet8", "num_classes": 7}


@given(
    kernels=st.lists(st.sampled_from([1, 3, 5]), min_size=1, max_size=3),
    middle=st.none() | st.integers(1, 5),
    size=st.integers(1, 5),
)
@settings(max_examples=25)
def test_a_connector_keeps_the_map_and_reaches_the_width(kernels, middle, size):
    connector = Connector(3, 8, kernels, middle).eval()
    out = connector(torch.randn(2, 3, size, size))
    assert out.shape == (2, 8, size, size)
    assert (out >= 0).all()
    widths = [3, *[middle or 4] * (len(kernels) - 1), 8]
    convolutions = [layer for layer in connector.modules() if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == list(itertools.pairwise(widths))
    assert all(convolution.bias is None for convolution in convolutions)


@pytest.mark.parametrize("size", [None, (2, 2)])
def test_a_larger_map_is_pooled_before_its_connector(size):
    torch.manual_seed(0)
    head, maps = ReusedHead(5, 3, 8, (1,), size=size).eval(), torch.randn(2, 3, 4, 4)
    connected = head.connector(maps if size is None else F.adaptive_avg_pool2d(maps, 2))
    assert head.connect(maps).equal(connected)
    torch.testing.assert_close(head(maps), head.classifier(connected.mean((2, 3))))


@pytest.mark.parametrize("side", ["output", "input"])
def test_it_starts_from_the_student_and_the_frozen_classifier(side):
    torch.manual_seed(0)
    student, classifier = build("resnet8", 7).eval(), nn.Linear(20, 5)
    path = "layer3" if side == "output" else "avgpool"
    network = JointNetwork(5, BACKBONE, path, side, HEAD).eval()
    network.start_from(student, classifier)
    features = Tapped(network, ["connector", "penultimate", "block3"])(views()).features
    before = Tapped(student, {"map": path if side == "output" else f"{path}:input"})(views()).features["map"]
    torch.testing.assert_close(features["connector"], network.head.connect(before))
    torch.testing.assert_close(features["block3"], Tapped(student, ["block3"])(views()).features["block3"])
    torch.testing.assert_close(network(views()), classifier(features["penultimate"]))
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"head.classifier.weight", "head.classifier.bias"}
    assert isinstance(network.get_submodule(network.classifier_path), nn.Linear)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": "outside"}, "takes the output or the input of 'layer3', not 'outside'"),
        (
            {"head": {"channels": 64}},
            "cannot be built from backbone .* missing 1 required positional argument: 'width'",
        ),
        ({"backbone": {"name": "resnet9", "num_classes": 7}}, "unknown model 'resnet9'"),
        ({"path": "layer9"}, "layer9"),
    ],
)
def test_what_cannot_be_joined_is_refused(change, message):
    given_ = {"backbone": BACKBONE, "path": "layer3", "side": "output", "head": HEAD, **change}
    with pytest.raises(UserError, match=message):
        JointNetwork(5, **given_)
