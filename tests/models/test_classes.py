"""Classes by name: a network's outputs are put in the data's order, or one line says why they cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import kdstream as kd
from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models import build
from kdstream.models.classes import are_numbers, choose_outputs, fit_classes
from kdstream.models.export import describe, save_student
from kdstream.models.pretrained import load_for

HERE = Path(__file__).stem
WORDS = ["ant", "bee", "cat", "dog"]
NUMBERS = ["0", "1", "2", "3"]
SAY = {"what": "T", "option": "teacher.classes", "count_option": "data.num_classes"}
IMAGENET = ["n01440764", "n02102040", "n03000684", "n03888257"]


def chosen(theirs, count, ours, choice=None, **settings):
    return choose_outputs(theirs, count, ours, choice, *SAY.values(), **settings)


@pytest.mark.parametrize(
    ("names", "expected"),
    [(NUMBERS, True), (["00", "01"], True), (["0", "3", "7"], False), (["1", "2"], False), (["0", "²"], False)],
)
def test_numbers_are_no_names(names, expected):
    assert are_numbers(names) == expected


@pytest.mark.parametrize(
    ("theirs", "ours", "choice", "expected", "note"),
    [
        (WORDS, WORDS, None, None, None),
        (WORDS, ["Ant", "bee", "CAT", "dog"], None, None, None),
        (WORDS, ["dog", "ant", "cat", "bee"], None, [3, 0, 2, 1], r"T: its classes stand in another order \('ant', "),
        (["Hot_dog", "tea pot", "dog"], ["dog", "hot dog", "tea-pot"], None, [2, 0, 1], "another order"),
        (
            WORDS,
            ["dog", "bee"],
            None,
            [3, 1],
            r"2 classes of its 4 are the data's, by name \('dog' = output 3, 'bee' =",
        ),
        (NUMBERS, ["1", "3"], None, [1, 3], r"2 classes of its 4 are the data's"),
        (["0", "1", "10", "2"], ["0", "1", "2", "10"], None, [0, 1, 3, 2], "another order"),
        (["crane", "ant", "crane"], ["crane", "ant", "crane"], None, None, None),
        (["crane", "ant", "crane"], ["ant"], None, [1], "1 class of its 3"),
        (NUMBERS, NUMBERS, None, None, None),
        (["00", "01", "02", "03"], NUMBERS, None, None, None),
        (None, WORDS, None, None, None),
        (WORDS, NUMBERS, None, None, r"have names \('ant', .*only numbers: they cannot be compared.*classes=same con"),
        (NUMBERS, WORDS, None, None, r"the data's classes have names \('ant', .*its own are only numbers: they cannot"),
        (WORDS, IMAGENET, None, None, r"called otherwise .* taken to be the same in the same order"),
        (IMAGENET, WORDS, None, None, r"called otherwise"),
        (WORDS, ["a", "b", "c", "d"], "same", [0, 1, 2, 3], None),
        (
            WORDS,
            ["bee", "b", "c", "d"],
            "same",
            [0, 1, 2, 3],
            "same, though 'bee' is its output 1, but the data's clas",
        ),
        (None, ["a", "b"], [3, 0], [3, 0], r"as teacher\.classes says: 'a' = output 3, 'b' = output 0"),
        (WORDS, ["a", "b"], ["dog", 0], [3, 0], r"'a' = output 3 'dog', 'b' = output 0 'ant'"),
        (WORDS, NUMBERS, [0, 1, 2, 3], [0, 1, 2, 3], None),
        (
            ["x"] * 8,
            [f"c{i}" for i in range(6)],
            [5, 4, 3, 2, 1, 0],
            [5, 4, 3, 2, 1, 0],
            r"'c2' = output 3 'x', \.\.\.$",
        ),
    ],
)
def test_outputs_are_found(theirs, ours, choice, expected, note):
    found, said = chosen(theirs, len(theirs or NUMBERS), ours, choice)
    assert found == expected
    assert (said is None) == (note is None)
    if note:
        assert "\n" not in said
        assert re.search(note, said), said


@pytest.mark.parametrize(
    ("theirs", "count", "ours", "choice", "message"),
    [
        (
            WORDS,
            4,
            ["ant", "bee", "cat", "dogs"],
            None,
            r"^T is for other classes than the data: 'dogs' of the data's 4 classes are unknown to it, it has 'dog'; "
            r".*by teacher\.classes=\[\.\.\.\] .*, or teacher\.classes=same where",
        ),
        (WORDS, 4, ["ape", "ant", "bee", "cat"], None, r"'ant' is its output 0, but the data's class 1; say which"),
        (
            WORDS,
            4,
            ["ant", "eel"],
            None,
            r"'eel' of the data's 2 classes are unknown .*it has 'bee', 'cat', 'dog'; say",
        ),
        (WORDS, 4, ["eel", *WORDS], None, r"'eel' of the data's 5 classes are unknown to it; say which of its 4"),
        (WORDS, 4, [*WORDS, "eel"], None, r"'eel' of the data's 5 classes are unknown to it; say which of its 4"),
        (["crane", "ant", "crane"], 3, ["crane"], None, r"several have the same name"),
        (
            NUMBERS,
            4,
            ["0", "1"],
            None,
            r"^T is for 4 classes, the data has 2 \(0 to 1\): where .* set data\.num_classes=4; "
            r"else say which of its outputs stand for them, in the data's order, by teacher\.classes=\[\.\.\.\]$",
        ),
        (None, 4, ["ant", "bee"], None, r"^T is for 4 classes, the data has 2: say which of its outputs"),
        (WORDS, 4, ["0", "1", "2"], None, r"T is for 4 classes, the data has 3 \(0 to 2\): .*data\.num_classes=4"),
        (
            None,
            3,
            NUMBERS,
            None,
            r"T is for 3 classes, the data has 4 \('0', '1', '2', \.\.\.\): it must know all of them$",
        ),
        (WORDS, 4, ["ant"], "same", r"T is for 4 classes, the data has 1: they are not the same; teacher\.classes=\["),
        (
            None,
            10,
            [str(i) for i in range(8)],
            [0, 3, 7],
            r"^teacher\.classes has 3 entries, the data has 8 classes .*"
            r"leave teacher\.classes out and set data\.num_classes=10$",
        ),
        (
            WORDS,
            4,
            WORDS,
            [0, 1],
            r"has 2 entries, the data has 4 classes \('ant', .*: give one for each .*, in this order$",
        ),
        (None, 4, ["a", "b"], [0, 4], r"teacher\.classes: 4 is none of the outputs of T: they are 0 to 3"),
        (None, 4, ["a", "b"], [-1, 2], r"-1 is none of the outputs"),
        (None, 4, ["a", "b"], [2, 2], r"output 2 of T stands for two of the data's classes"),
        (
            WORDS,
            4,
            ["a", "b"],
            ["dog", "eel"],
            r"'eel' is no class of T alone; its classes are 'ant', 'bee', 'cat', 'dog'$",
        ),
        (None, 4, ["a", "b"], ["dog", 1], r"'dog' is no class of T alone; it names none: give numbers"),
        (["a\x1b[2J", "b"], 2, ["c", "d"], None, r"it has 'a\\x1b\[2J', 'b'"),
    ],
)
def test_what_does_not_fit_is_refused(theirs, count, ours, choice, message):
    with pytest.raises(UserError, match=message) as error:
        chosen(theirs, count, ours, choice)
    assert "\n" not in str(error.value)


def test_names_that_a_library_gives_prove_nothing():
    assert chosen(WORDS, 4, ["ants", "bees", "cats", "dogs"], sure=False)[0] is None
    assert chosen(WORDS, 4, ["dog", "ant", "cat", "bee"], sure=False)[0] == [3, 0, 2, 1]


# ---- the network


def fixed(num_classes):
    """Somebody's network that has four outputs whatever one asks for."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))


def normed(num_classes):
    """One whose last linear layer is normalised over its classes, with a parametrized weight."""
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(12, num_classes))
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), linear, nn.BatchNorm1d(num_classes))


def after(num_classes):
    """One whose last layer mixes the classes."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes), nn.Linear(num_classes, 4))


JOINT = {
    "backbone": {"name": "resnet8", "num_classes": 4},
    "path": "layer3",
    "side": "output",
    "head": {"channels": 64, "width": 32},
}
NETWORKS = (
    *(("resnet8", 16, {}), ("vgg8", 32, {}), ("squeezenet1_1", 64, {}), ("regnet_y_400mf", 32, {})),
    (f"{HERE}:normed", 8, {}),
    ("timm:deit_tiny_distilled_patch16_224", 32, {"img_size": 32}),
    ("kdstream.models.joint:JointNetwork", 16, JOINT),
    ("kdstream.models.branches:Branched", 16, {"base": {"name": "resnet8"}}),
)


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def trained(name, options=None, classes=WORDS, count=4):
    torch.manual_seed(0)
    network = build(name, count, **(options or {})).eval()
    with torch.no_grad():
        for value in network.state_dict().values():  # also where layers begin with zeros
            if value.is_floating_point():
                value += 0.1 * torch.rand(value.shape)
    return describe(network, {"spec": network.spec, "classes": classes})


@pytest.mark.parametrize("ours", [["dog", "cat", "ant", "bee"], ["cat", "ant"]])
@pytest.mark.parametrize(("name", "side", "options"), NETWORKS, ids=[name for name, _, _ in NETWORKS])
def test_every_consumer_sees_the_outputs_in_the_datas_order(importable, name, side, options, ours):
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="an extra")
    network = trained(name, options)
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        before = network(images)
    was, random = weights_hash(network), torch.get_rng_state()
    assert fit_classes(network, ours, **SAY) is not None
    assert torch.equal(torch.get_rng_state(), random)
    order = [WORDS.index(word) for word in ours]
    with torch.no_grad():
        torch.testing.assert_close(network(images), before[:, order])
    assert (network.about["classes"], network.spec["num_classes"]) == (ours, len(ours))
    assert weights_hash(network) != was
    again = build(**network.spec).eval()  # as an export is rebuilt
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(images), before[:, order])
    if network.classifier_path:
        classifier = network.get_submodule(network.classifier_path)
        assert classifier.weight.shape[0] == len(ours) == classifier.out_features


def test_a_network_that_fits_is_left_as_it_is():
    for classes, ours in ((WORDS, WORDS), (None, WORDS), (WORDS, NUMBERS)):
        network = trained("resnet8", classes=classes)
        was = weights_hash(network)
        fit_classes(network, ours, **SAY)
        assert weights_hash(network) == was


@pytest.mark.parametrize("name", ["fixed", "after"])
def test_a_network_without_a_row_for_each_class_is_refused(importable, name):
    network = trained(f"{HERE}:{name}")
    was = weights_hash(network)
    with pytest.raises(
        UserError, match=rf"^T: its outputs cannot be put in another order .*test_classes:{name} has one"
    ):
        fit_classes(network, WORDS[::-1], **SAY)
    assert weights_hash(network) == was


# ---- load_teacher


def test_load_teacher_for_the_classes_of_a_data_set(tmp_path):
    network = trained("resnet8")
    save_student(tmp_path / "t", network, classes=WORDS)
    torch.save(network.state_dict(), tmp_path / "t.pth")
    images = torch.randn(2, 3, 16, 16)
    before = network(images)
    with pytest.warns(UserWarning, match="2 classes of its 4 are the data's"):
        teacher = kd.load_teacher(tmp_path / "t", classes=["dog", "bee"])
    torch.testing.assert_close(teacher(images), before[:, [3, 1]])
    assert (teacher.classes, teacher.training) == (["dog", "bee"], False)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    with pytest.warns(UserWarning, match="as outputs says"):
        teacher = kd.load_teacher(tmp_path / "t.pth", classes=["x", "y"], outputs=[3, 1])
    torch.testing.assert_close(teacher(images), before[:, [3, 1]])
    with pytest.raises(UserError, match=r"t\.pth is for 4 classes, the data has 2: say which .* by outputs=\[\.\.\.\]"):
        kd.load_teacher(tmp_path / "t.pth", classes=["x", "y"])
    with pytest.raises(UserError, match=r"is for other classes than the data: 'x', 'y' of the data's 2"):
        kd.load_teacher(tmp_path / "t", classes=["x", "y"])


def test_a_file_that_shows_no_class_count_is_for_the_datas(tmp_path):
    torch.save(build("squeezenet1_1", 4).state_dict(), tmp_path / "w.pth")
    network, note = load_for(WORDS, tmp_path / "w.pth", model="squeezenet1_1")
    assert (network.spec["num_classes"], note) == (4, None)
