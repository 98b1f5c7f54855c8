"""torchvision's models by name: classes, taps, weights."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's cache with a file of random weights where torchvision looks for those of ResNet-18."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
    return state


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_taps_of_resnets(name):
    torch.manual_seed(0)
    module = build(name, 5).eval()
    blocks = [f"block{stage}" for stage in (1, 2, 3, 4)]
    assert set(module.taps) == {"stem", *blocks, *(f"{block}.pre" for block in blocks), "map", "penultimate"}
    with torch.no_grad():
        outputs = Tapped(module, list(module.taps))(torch.randn(2, 3, 64, 64))
    assert outputs.features["stem"].shape == (2, 64, 32, 32)
    for block in blocks:
        assert (outputs.features[f"{block}.pre"] < 0).any()
        assert torch.equal(outputs.features[f"{block}.pre"].relu(), outputs.features[block])
    torch.testing.assert_close(outputs.features["block4"].mean((2, 3)), outputs.features["penultimate"])
    assert torch.equal(outputs.features["map"], outputs.features["block4"])
    assert torch.equal(module.fc(outputs.features["penultimate"]), outputs.logits)


def test_weights_of_the_same_class_count_load_whole(hub):
    module = build("resnet18", 1000, weights="DEFAULT")
    assert all(torch.equal(value, hub[key]) for key, value in module.state_dict().items())
    assert module.spec == {"name": "resnet18", "num_classes": 1000}  # rebuilding downloads nothing


def test_weights_of_another_class_count_get_a_new_last_layer(hub):
    module = build("resnet18", 7, weights="IMAGENET1K_V1")
    assert module.fc.weight.shape == (7, 512)
    assert torch.equal(module.conv1.weight, hub["conv1.weight"])
    assert Tapped(module).classifier is module.fc


def test_auxiliary_heads_are_off():
    module = build("googlenet", 5, init_weights=False)
    assert module.train()(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_a_network_without_linear_layer():
    module = build("squeezenet1_1", 5)
    assert module.classifier_path is None
    with pytest.raises(UserError, match=r"^squeezenet1_1 has no linear classifier$"):
        _ = Tapped(module).classifier
    assert not any(isinstance(m, nn.Linear) for m in module.modules())


def test_wrong_weights():
    with pytest.raises(UserError, match=r"^model 'resnet18' has no weights 'DEFALT': did you mean 'DEFAULT'\?$"):
        build("resnet18", 5, weights="DEFALT")
    with pytest.raises(UserError, match="'pretrained' is torchvision's old switch; use weights: DEFAULT"):
        build("resnet18", 5, pretrained=True)


def test_weights_that_cannot_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    # A file: address, so that the failure needs no network.
    monkeypatch.setattr(torchvision.models.ResNet18_Weights.DEFAULT.value, "url", (tmp_path / "absent.pth").as_uri())
    with pytest.raises(UserError, match=r"^model 'resnet18': cannot get the weights DEFAULT: "):
        build("resnet18", 5, weights="DEFAULT")
