"""Notes on networks: what ``build`` writes is read back, a plain module has none, and they are no part of the state."""

from __future__ import annotations

import copy

from torch import nn

from kdstream.models import build
from kdstream.notes import about_of, architecture, classifier_path_of, note, spec_of, taps_of


def test_a_plain_module_has_none():
    plain = nn.Linear(2, 2)
    assert (spec_of(plain), taps_of(plain), classifier_path_of(plain), about_of(plain)) == ({}, {}, None, {})
    assert architecture(plain) == "Linear"


def test_a_built_network_has_those_of_build():
    network = build("resnet8", 10)
    assert (architecture(network), spec_of(network)) == ("resnet8", {"name": "resnet8", "num_classes": 10})
    assert classifier_path_of(network) == "fc"
    assert taps_of(network)["penultimate"] == "fc:input"


def test_they_are_attributes_that_copies_keep_and_no_part_of_the_state():
    network = build("resnet8", 10)
    keys = list(network.state_dict())
    note(network, about={"classes": ["a"]}, classes=["a"], mean=(0.5,))
    assert list(network.state_dict()) == keys
    assert (network.classes, network.mean) == (["a"], (0.5,))
    about_of(network)["note"] = "which"
    assert about_of(copy.deepcopy(network)) == {"classes": ["a"], "note": "which"}
