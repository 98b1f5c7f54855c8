"""Saving and rebuilding a student, and the files that are refused."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st
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


def test_kdstreams_own_dotted_factories_need_no_trust(tmp_path):
    module = build("kdstream.models.zoo.cifar_resnet:CifarResNet", 3, depth=8)
    save_student(tmp_path, module)
    assert weights_hash(load_student(tmp_path)) == weights_hash(module)


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"classes": ["a", "b"]}, r"^2 class names for a network of 3 classes$"),
        ({"extra": {"model": nn.ReLU()}}, r"^what is saved with a student must be plain JSON: "),
        ({"classes": ["a", "b", "\ud800"]}, r"^what is saved with a student must be plain JSON: "),
        ({"mean": (0.5,)}, r"^mean must be three finite numbers, one by channel, not \[0\.5\]$"),
        ({"mean": torch.tensor([0, 0, float("nan")])}, r"^mean must be three finite numbers"),
        ({"std": (1, 1, -1)}, r"^std must be above 0"),
        ({"image_size": 0}, r"^image_size must be a number of pixels from 1 to 65535"),
        ({"image_size": (8, 8, 3)}, r"^image_size must be"),
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


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        (
            "mean",
            ["grey", [0.5], [0.5] * 4, [0.5, 0.5, None], [True] * 3, [1e39] * 3, [10**400] * 3, {}],
            "mean must be",
        ),
        ("mean", [[float("nan")] * 3, [float("inf")] * 3], "mean must be three finite numbers"),
        ("std", [0.5, [0.5, 0.5], ["1", "1", "1"], [0.5, float("nan"), 0.5]], "std must be three finite numbers"),
        ("std", [[0, 1, 1], [1, 1, -0.5]], "std must be above 0"),
        (
            "image_size",
            [0, -8, 8.0, "8", True, [], [8], [8, 8, 8], [8, 0], [8, None], 65536, 10**30, {}],
            "image_size must",
        ),
        ("classes", ["abc", [1, 2, 3], ["a", "b", None], {"a": 0}, 3, True], "classes must be a list of names"),
        ("classes", [[], ["a", "b"]], r"\d class names for a network of 3 classes"),
        ("format", [None, True, 1.0, "1", [1], 0], r"has format .*, this kdstream reads format 1"),
        ("weights_sha256", [None, 7, "", "0" * 63, "G" * 64, ["0" * 64]], "weights_sha256 must be 64 hexadecimal"),
        ("extra", [None, [], "x", 3], "extra must be an object"),
        (
            "spec",
            [None, [], {}, {"name": 8, "num_classes": 3}, {"name": None, "num_classes": 3}],
            "does not describe a",
        ),
    ],
)
def test_every_field_of_the_description_is_checked(tmp_path, field, values, message):
    save_student(tmp_path, student(), classes=["a", "b", "c"], mean=(0.5,) * 3, std=(0.5,) * 3, image_size=8)
    for value in values:
        edit(tmp_path, **{field: value})
        with pytest.raises(UserError, match=message) as caught:
            load_student(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "[" * 100_000, "is no JSON, or truncated"),
        (lambda text: text.replace('"format": 1', '"format": ' + "1" * 5000), "is no JSON, or truncated"),
        (lambda text: text.replace("resnet8", "resnet\x00"), "is no JSON, or truncated"),
        (lambda text: text.replace('"name"', '"name": "os:system", "name"'), "the key name stands there twice"),
        (lambda text: text.replace('"std"', '"mean": [0, 0, 0], "std"'), "the key mean stands there twice"),
        (lambda text: text + " " * 2**24, "is larger than 16 MB"),
        (lambda text: "", "is no JSON, or truncated"),
    ],
)
def test_descriptions_that_are_no_plain_json(tmp_path, change, message):
    save_student(tmp_path, student(), mean=(0.5,) * 3)
    path = tmp_path / "student.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=message) as caught:
        load_student(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_was_written_with_a_student_may_be_nan(tmp_path):
    save_student(tmp_path, student(), extra={"loss": float("nan")})
    assert np.isnan(load_student(tmp_path).about["extra"]["loss"])


def test_a_channel_without_deviation_is_written_as_training_takes_it(tmp_path):
    save_student(tmp_path, student(), mean=(0.5,) * 3, std=(0.5, 0, 1e-9))
    assert load_student(tmp_path).std == [0.5, 1e-6, 1e-6]


def test_pipes_are_not_waited_for(tmp_path):
    save_student(tmp_path, student())
    for name in ("student.safetensors", "student.json"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} is no ordinary file"):
            load_student(tmp_path)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["os:system", "resnet8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The folder of a student with every field, its network, and the content of its description."""
    folder, module = tmp_path_factory.mktemp("described"), student()
    size = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "image_size": (8, 8)}
    save_student(folder, module, classes=["a", "b", "c"], extra={"top1": 0.5}, **size)
    return folder, module, json.loads((folder / "student.json").read_text())


@runs(max_examples=150)
@given(data=st.data())
def test_a_changed_description_is_refused_or_gives_the_same_network(described, data):
    folder, module, about = described
    about = json.loads(json.dumps(about))
    place = data.draw(
        st.sampled_from([about, about["spec"], about["spec"]["widths"], about["mean"], about["image_size"]])
    )
    keys = sorted(place) if isinstance(place, dict) else range(len(place))
    key = data.draw(st.sampled_from([*keys, "new"] if isinstance(place, dict) else list(keys)))
    if data.draw(st.booleans()) and key != "new":
        del place[key]
    else:
        place[key] = data.draw(ANYTHING)
    (folder / "student.json").write_text(json.dumps(about))
    try:
        again = load_student(folder)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert weights_hash(again) == weights_hash(module)
    images = torch.ones(1, 3, 8, 8)
    assert torch.equal(again(images), module.eval()(images))


def test_flipped_bits_are_found(tmp_path):
    save_student(tmp_path, student())
    path = tmp_path / "student.safetensors"
    data = path.read_bytes()
    for place in range(0, 8 * len(data), 8 * len(data) // 40):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"is not the file that student\.json describes"):
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
