"""Building what a file describes: the network of its weights, and nothing that would take more memory than they do."""

from __future__ import annotations

import pytest
import torch

from kdstream.errors import UserError
from kdstream.models import bounded, build
from kdstream.models.bounded import build_within

SPEC = {"name": "resnet8", "num_classes": 5}


@pytest.fixture(scope="module")
def weights():
    return build(**SPEC).state_dict()


def test_the_network_of_the_weights_is_built_with_memory_and_gradients(weights):
    network = build_within(SPEC, weights, "a.json", "a.safetensors")
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in weights.items()
    }
    assert not any(value.is_meta for value in network.state_dict().values())
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        build_within(SPEC, weights, "a.json", "a.safetensors")
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({**SPEC, "num_classes": 10**9}, r"^a\.json describes 1000000000 classes, a\.safetensors holds \d+ numbers$"),
        ({**SPEC, "num_classes": 6}, r"a\.safetensors"),
        ({**SPEC, "name": "resnet110"}, r"a\.safetensors|far larger"),
        ({"name": "wrn_40_2", "num_classes": 5}, r"a\.safetensors|far larger"),
        ({**SPEC, "widths": ["x"]}, r"four positive widths .*, not \['x'\]"),
    ],
)
def test_another_network_is_refused_before_it_takes_memory(weights, spec, message, monkeypatch):
    def meta_only(**given):
        network = build(**given)
        assert all(value.is_meta for value in network.state_dict().values()), "it took memory"
        return network

    monkeypatch.setattr(bounded, "build", meta_only)
    with pytest.raises(UserError, match=message):
        build_within(spec, weights, "a.json", "a.safetensors")


def test_a_constructor_without_end_is_stopped(weights, monkeypatch):
    def endless(**_):
        made = []
        while True:
            made.append(torch.zeros(1))

    monkeypatch.setattr(bounded, "build", endless)
    with pytest.raises(UserError, match=r"^a\.json describes a network far larger than its weights$"):
        build_within(SPEC, weights, "a.json", "a.safetensors")
