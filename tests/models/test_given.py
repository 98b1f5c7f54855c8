"""Networks given as objects: a name for as long as they are in use, and copies by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models import build, is_dotted
from kdstream.models.given import class_of, given, is_given


def small(classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))


def test_a_name_is_of_class_and_weights_and_gives_copies():
    network = small()
    with given(network) as name, given(small()) as same, given(small(seed=1)) as other:
        assert name == same != other
        assert is_given(name)
        assert not is_dotted(name)
        made = build(name, 3)
        assert made is not network
        assert weights_hash(made) == weights_hash(network)
        assert made.classifier_path == "1"
        assert made.taps == {"penultimate": "1:input"}
        assert class_of(made.spec) == "torch.nn.modules.container.Sequential"
        assert "#" not in made.spec["name"]
        with pytest.raises(UserError, match="is for 3 classes, the data has 4"):
            build(name, 4)
    assert not hasattr(network, "spec")
    with pytest.raises(UserError, match="give it again"):
        build(name, 3)


def test_one_of_build_keeps_its_spec():
    with given(build("resnet8", 3)) as name:
        assert build(name, 3).spec == {"name": "resnet8", "num_classes": 3}


def test_what_has_no_lasting_name_is_never_found_again(tmp_path):
    network = small()
    with (tmp_path / "log").open("w") as network.log:
        with given(network) as one, given(network) as two:
            assert one != two
        del network.log
    network.iterator = iter(())
    network.iterator = (i for i in ())
    with given(network) as name, pytest.raises(UserError, match="Sequential cannot be copied"):
        build(name, 3)
