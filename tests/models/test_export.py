"""Saving and rebuilding a student, and the files that are refused."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models import build
from kdstream.models.export import load_student, save_student

OWN = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("imported").touch()

def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3, num_classes))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's module; the file ``imported`` beside it shows that it was executed."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own_students.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "own_students", raising=False)
    yield folder / "imported"
    sys.modules.pop("own_students", None)


def student() -> nn.Module:
    torch.manual_seed(0)
    module = build("resnet8", 3, widths=[4, 4, 6, 8])
    module(torch.randn(8, 3, 8, 8))  # moves the running statistics
    return module


def edit(folder, **changes):
    path = folder / "student.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("which", ["", "student.json", "student.safetensors"])
def test_a_saved_student_comes_back(tmp_path, which):
    module = student()
    description = save_student(
        tmp_path / "a" / "b",
        module,
        classes=["cat", "dog", "Käfer"],
        mean=torch.tensor([0.5, 0.25, 0.125]),
        std=(0.5, 0.5, 1),
        image_size=8,
        extra={"top1": 0.5, "recipe": {"lr": 0.1}},
    )
    assert description == tmp_path / "a" / "b" / "student.json"
    assert sorted(os.listdir(description.parent)) == ["student.json", "student.safetensors"]
    again = load_student(description.parent / which)
    assert not again.training
    assert weights_hash(again) == weights_hash(module)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(images), module.eval()(images))
    assert again.classes == ["cat", "dog", "Käfer"]
    assert (again.mean, again.std, again.image_size) == ([0.5, 0.25, 0.125], [0.5, 0.5, 1.0], 8)
    assert again.about["extra"] == {"top1": 0.5, "recipe": {"lr": 0.1}}
    assert (again.spec, again.taps) == (module.spec, module.taps)


def test_what_is_not_given_is_none(tmp_path):
    save_student(tmp_path, student())
    again = load_student(tmp_path)
    assert (again.classes, again.mean, again.std, again.image_size) == (None, None, None, None)


def test_image_height_and_width(tmp_path):
    save_student(tmp_path, student(), image_size=(8, np.int64(12)))
    assert load_student(tmp_path).image_size == [8, 12]


def test_a_networks_own_attribute_stays(tmp_path):
    kw = {"image_size": 8, "patch_size": 4, "num_layers": 1, "num_heads": 1, "hidden_dim": 4, "mlp_dim": 4}
    module = build("torchvision.models:VisionTransformer", 3, **kw)
    save_student(tmp_path, module, image_size=(8, 8))
    again = load_student(tmp_path, trust_code=True)
    assert again.image_size == 8  # the transformer compares its input with it
    assert again.about["image_size"] == [8, 8]
    assert again(torch.zeros(1, 3, 8, 8)).shape == (1, 3)


def test_tied_and_half_weights(tmp_path):
    module = student().half()
    module.layer3[0].bn2.weight = module.layer3[0].bn1.weight
    save_student(tmp_path, module)
    again = load_student(tmp_path)
    assert torch.equal(again.layer3[0].bn2.weight, module.layer3[0].bn1.weight.float())


def test_the_networks_of_others_are_not_imported_unless_trusted(tmp_path, own):
    save_student(tmp_path, build("own_students:net", 3))
    sys.modules.pop("own_students")
    own.unlink()
    with pytest.raises(UserError, match=r"student.json names code of its own \(own_students:net\).*trust_code=True"):
        load_student(tmp_path)
    assert not own.exists()
    assert load_student(tmp_path, trust_code=True)(torch.zeros(2, 3)).shape == (2, 3)
    assert own.exists()


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "os:system", "num_classes": 3, "command": "true"},
        {"name": "kdstream.models.export:os.system", "num_classes": 3},
        {"name": "kdstream.models.export:import_object", "num_classes": 3, "path": "os:system"},
        {"name": "kdstream.models:build", "num_classes": 3, "kw": [{"name": "own_students:net"}]},
        {"name": "resnet8", "num_classes": 3, "student": {"name": "x", "teacher": {"name": "own_students:net"}}},
        {"name": "kdstream.models.cifar_resnet:nn.Linear", "num_classes": 3},
        {"name": "kdstream.models.weights:build_x.y", "num_classes": 3},
        {"name": "kdstream.models.weights:Path", "num_classes": 3},
        {"name": "kdstreamer.models:x", "num_classes": 3},
    ],
)
def test_specs_that_would_run_something_else(tmp_path, own, spec):
    save_student(tmp_path, student())
    edit(tmp_path, spec=spec)
    with pytest.raises(UserError, match="names code of its own"):
        load_student(tmp_path)
    assert not own.exists()


def test_kdstreams_own_dotted_factories_need_no_trust(tmp_path):
    module = build("kdstream.models.cifar_resnet:CifarResNet", 3, depth=8)
    save_student(tmp_path, module)
    assert weights_hash(load_student(tmp_path)) == weights_hash(module)


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"classes": ["a", "b"]}, r"^2 class names for a network of 3 classes$"),
        ({"extra": {"model": nn.ReLU()}}, r"^what is saved with a student must be plain JSON: "),
    ],
)
def test_nothing_is_written_for_wrong_arguments(tmp_path, kw, message):
    with pytest.raises(UserError, match=message):
        save_student(tmp_path / "out", student(), **kw)
    assert not (tmp_path / "out").exists()


def test_a_network_without_spec(tmp_path):
    with pytest.raises(UserError, match=r"^Linear cannot be exported: it has no 'spec' to rebuild it"):
        save_student(tmp_path, nn.Linear(2, 2))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the student there: "):
        save_student(tmp_path / "file" / "out", student())


def test_an_interrupted_export_leaves_the_old_student(tmp_path, monkeypatch):
    save_student(tmp_path, student(), extra={"epoch": 1})

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_student(tmp_path, build("resnet8", 3), extra={"epoch": 2})
    assert load_student(tmp_path).about["extra"] == {"epoch": 1}
    assert sorted(os.listdir(tmp_path)) == ["student.json", "student.safetensors"]


def test_files_of_two_exports(tmp_path):
    save_student(tmp_path, student())
    safetensors.torch.save_file(build("resnet8", 3).state_dict(), tmp_path / "student.safetensors")
    with pytest.raises(UserError, match=r"student.safetensors is not the file that student.json describes"):
        load_student(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": {"name": "resnet9", "num_classes": 3}}, r"^unknown model 'resnet9'"),
        ({"spec": {"name": "resnet14", "num_classes": 3}}, "student.safetensors is for another architecture than res"),
        ({"spec": {"name": "resnet8", "num_classes": 4, "widths": [4, 4, 6, 8]}}, "is for 3 classes, the data has 4"),
        ({"spec": {"name": "resnet8"}}, "does not describe a student: it has no spec with name and num_classes"),
        ({"spec": "resnet8"}, "does not describe a student"),
        ({"format": 2}, "has format 2, this kdstream reads format 1"),
    ],
)
def test_wrong_descriptions(tmp_path, changes, message):
    save_student(tmp_path, student())
    edit(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load_student(tmp_path)


def test_damaged_and_missing_files(tmp_path):
    save_student(tmp_path, student())
    text = (tmp_path / "student.json").read_text()
    (tmp_path / "student.json").write_text(text[:40])
    with pytest.raises(UserError, match=r"student.json is no JSON, or truncated: "):
        load_student(tmp_path)
    (tmp_path / "student.json").write_text(text)
    (tmp_path / "student.safetensors").unlink()
    with pytest.raises(UserError, match=r"student.safetensors: no such file; a student is "):
        load_student(tmp_path)
    with pytest.raises(UserError, match=r"absent: no such folder"):
        load_student(tmp_path / "absent")
