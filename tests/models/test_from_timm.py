"""timm's networks: taps of maps and of tokens, new classifiers, and arguments that would fetch something."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.classes import fit_classes
from kdstream.models.export import describe
from kdstream.models.from_timm import installed
from kdstream.models.taps import Tapped

timm = pytest.importorskip("timm", reason="an extra")


def tapped(name: str, size: int, **settings) -> tuple[nn.Module, dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    module = build(f"timm:{name}", 5, **settings).eval()
    with torch.no_grad():
        outputs = Tapped(module, list(module.taps))(torch.randn(2, 3, size, size))
    return module, outputs.features, outputs.logits


def test_taps_of_a_residual_network():
    module, features, logits = tapped("resnet10t", 64)
    blocks = [f"block{stage}" for stage in (1, 2, 3, 4)]
    assert set(features) == {"stem", *blocks, *(f"{block}.pre" for block in blocks), "map", "penultimate"}
    assert [features[name].shape[-1] for name in ("stem", *blocks)] == [32, 16, 8, 4, 2]
    for block in blocks:
        assert features[f"{block}.pre"].relu().equal(features[block])
    torch.testing.assert_close(features["map"].mean((2, 3)), features["penultimate"])
    assert module.get_submodule(module.classifier_path)(features["penultimate"]).equal(logits)


def test_taps_of_a_transformer():
    module, features, logits = tapped("test_vit", 32, img_size=32)
    tokens = [name for name in features if name.startswith("tokens.")]
    assert tokens == [*(f"tokens.{number}" for number in range(1, len(tokens))), "tokens.last"]
    length, width = features["tokens.1"].shape[1:]
    assert length - module.num_prefix_tokens == 4  # patches of 16 x 16 pixels
    assert all(features[name].shape == (2, length, width) for name in tokens)
    assert module.get_submodule(module.classifier_path)(features["penultimate"]).equal(logits)
    assert module.spec == {"name": "timm:test_vit", "num_classes": 5, "img_size": 32}


def test_two_heads_answer_by_their_mean():
    module, features, logits = tapped("deit_tiny_distilled_patch16_224", 32, img_size=32, depth=2)
    torch.testing.assert_close((features["logits.label"] + features["logits.teacher"]) / 2, logits)
    assert module.head(features["penultimate"]).equal(features["logits.label"])
    assert not features["logits.label"].equal(features["logits.teacher"])
    assert module.classifier_path is None
    state = {name: value.clone() for name, value in module.state_dict().items() if name.startswith("head")}
    describe(module, {"spec": module.spec})
    fit_classes(module, ["a", "b"], [3, 0], what="it", option="classes", count_option="num_classes")
    assert module.head.weight.equal(state["head.weight"][[3, 0]])
    assert module.head_dist.weight.equal(state["head_dist.weight"][[3, 0]])
    with torch.no_grad():
        assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("timm:resnet10", {}, "unknown model 'timm:resnet10': did you mean 'timm:resnet1"),
        ("timm:hf-hub:me/evil", {}, "unknown model"),
        ("timm:resnet10t", {"checkpoint_path": "x"}, "'checkpoint_path' is no argument of the network"),
        ("timm:resnet10t", {"pretrained_cfg": {}}, "'pretrained_cfg' is no argument of the network"),
        ("timm:resnet10t", {"pretrained": "yes"}, "pretrained is true or false, not 'yes'"),
        ("timm:resnet10t", {"nonsense": 3}, "nonsense"),
    ],
)
def test_what_is_no_network_of_timms_is_refused_and_nothing_fetched(name, settings, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        build(name, 5, **settings)


def test_without_timm_it_is_said_so(monkeypatch):
    assert installed()
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match="timm"):
        build("timm:resnet10t", 5)
