"""What the zoo's networks share: which images they take, and He's initialisation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kdstream.errors import UserError
from kdstream.models.zoo.parts import check_images, he_fan_out_


@given(shape=st.lists(st.integers(0, 9), max_size=5), smallest=st.integers(1, 5))
def test_images_of_the_right_form_pass_and_others_are_named_with_their_shape(shape, smallest):
    images, module = torch.zeros(shape), nn.Identity()
    if len(shape) == 4 and shape[1] == 3 and min(shape[2:]) >= smallest:
        check_images(images, module, 3, smallest)
    else:
        size = rf" of at least {smallest} x {smallest} pixels" if smallest > 1 else ""
        with pytest.raises(UserError) as caught:
            check_images(images, module, 3, smallest)
        assert str(caught.value) == f"Identity takes images [N,3,H,W]{size}, not {shape}"


def test_initialisation_counts_outgoing_connections_and_leaves_linear_layers_unless_told():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 256, 3), nn.BatchNorm2d(256), nn.Linear(256, 400))
    nn.init.constant_(network[1].weight, 5)
    before = network[2].weight.clone()
    he_fan_out_(network)
    assert network[0].weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert not network[0].bias.any()
    assert (network[1].weight == 1).all()
    assert network[2].weight.equal(before)
    he_fan_out_(network, linear_std=0.01)
    assert network[2].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not network[2].bias.any()
