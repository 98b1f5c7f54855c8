"""Networks by name, and the attributes that every one carries."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from kdstream.errors import UserError
from kdstream.models import MODELS, build

FACTORY = """
from torch import nn

def net(num_classes, width=4, student=None):
    module = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
    module.got = student
    return module

def headless(num_classes):
    return nn.Conv2d(3, num_classes, 1)

def not_a_module(num_classes):
    return num_classes

number = 3
"""


@pytest.fixture(scope="module", autouse=True)
def own_factories(tmp_path_factory):
    """A module outside the package, as a user has it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_factories.py").write_text(FACTORY)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("own_factories", None)


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4", "resnet18", "mobilenet_v2", "own_factories:net"])
def test_a_network_answers_and_its_spec_rebuilds_it(name):
    module = build(name, 7).eval()
    with torch.no_grad():
        assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert module.spec == {"name": name, "num_classes": 7}
    again = build(**json.loads(json.dumps(module.spec)))
    assert [(k, v.shape) for k, v in again.state_dict().items()] == [
        (k, v.shape) for k, v in module.state_dict().items()
    ]
    assert (again.taps, again.classifier_path) == (module.taps, module.classifier_path)
    classifier = module.get_submodule(module.classifier_path)
    assert isinstance(classifier, nn.Linear)
    assert classifier.out_features == 7
    assert module.taps["penultimate"] == f"{module.classifier_path}:input"


def test_every_short_name_is_a_factory():
    assert all(callable(MODELS.find(name)) for name in MODELS)


def test_a_dotted_factory_takes_nested_specs_as_they_are():
    nested = {"name": "resnet8", "num_classes": 7, "widths": [4, 4, 4, 4]}
    module = build("own_factories:net", 7, width=5, student=nested)
    assert module.got == nested
    assert module.spec == {"name": "own_factories:net", "num_classes": 7, "width": 5, "student": nested}


def test_a_network_without_linear_layer_has_no_classifier():
    module = build("own_factories:headless", 7)
    assert module.classifier_path is None
    assert module.taps == {}


@pytest.mark.parametrize(
    ("name", "kw", "message"),
    [
        ("resnet21", {}, r"^unknown model 'resnet21': did you mean 'resnet\d+'\?$"),
        ("mobilnet_v2", {}, r"^unknown model 'mobilnet_v2': did you mean 'mobilenet_v2'\?$"),
        ("zzz", {}, r"^unknown model 'zzz': known: resnet8, .*ResNet50, .*torchvision's .*package.module:factory$"),
        ("resnet8", {"widht": 3}, r"^model 'resnet8': got an unexpected keyword argument 'widht'$"),
        ("resnet18", {"widht": 3}, r"^model 'resnet18': .*unexpected keyword argument 'widht'$"),
        ("own_factories:net", {"depth": 3}, r"^model 'own_factories:net': .*unexpected keyword argument 'depth'$"),
        ("own_factories:net", {"student": nn.ReLU()}, r"^model 'own_factories:net': arguments must be plain JSON"),
        ("resnet18", {"norm_layer": nn.BatchNorm2d}, r"^model 'resnet18': arguments must be plain JSON"),
        ("own_factories:not_a_module", {}, r"^model 'own_factories:not_a_module' gave int, not a torch.nn.Module$"),
        ("own_factories:number", {}, r"is not a function or class"),
        ("own_factories:nett", {}, r"^model 'own_factories:nett': own_factories has no 'nett'; did you mean 'net'\?$"),
        ("no_such_package:net", {}, r"^model 'no_such_package:net': cannot import module 'no_such_package'"),
    ],
)
def test_wrong_names_and_arguments(name, kw, message):
    with pytest.raises(UserError, match=message):
        build(name, 7, **kw)


@pytest.mark.parametrize("count", [0, -1, 2.0, "10", True])
def test_wrong_class_counts(count):
    with pytest.raises(UserError, match=r"^model 'resnet8': num_classes must be a positive whole number, not "):
        build("resnet8", count)


def test_a_folder_in_place_of_a_model_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"unknown model 'run': 'run' here is a folder, whose weights are \./run; "):
        build("run", 10)
