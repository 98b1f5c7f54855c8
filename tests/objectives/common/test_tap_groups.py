"""Terms choose their taps by the blocks that both networks have: RepDistiller's, for every kind of network."""

from __future__ import annotations

import pytest
import torch
from builders import batch, outputs

from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives import Task, parse_loss
from kdstream.objectives.common.tap_groups import paired

THREE, FOUR = ([f"block{i}{pre}" for i in range(1, n + 1) for pre in ("", ".pre")] for n in (3, 4))
BLOCKS = {"resnet20": 3, "wrn_16_2": 3, "ShuffleV1": 3, "ShuffleV2": 3, "vgg8": 4, "MobileNetV2": 4, "ResNet50": 4}
"""How many maps RepDistiller's networks give between the stem and the pooled one (``feat[1:-1]``)."""


@pytest.mark.parametrize(
    ("student", "teacher", "ours", "theirs", "expected"),
    [
        (["block*"], ["block*"], THREE, THREE, [("block1", "block1"), ("block2", "block2"), ("block3", "block3")]),
        (["block*.pre"], ["block*.pre"], THREE, FOUR, [(f"block{i}.pre", f"block{i + 1}.pre") for i in (1, 2, 3)]),
        (["stem", "block.last"], ["stem", "block.last"], FOUR, THREE, [("stem", "stem"), ("block4", "block3")]),
        (["block*"], ["a", "b", "c"], THREE, [], [("block1", "a"), ("block2", "b"), ("block3", "c")]),
    ],
)
def test_pairs(student, teacher, ours, theirs, expected):
    assert list(zip(*paired("at", student, teacher, ours, theirs), strict=True)) == expected


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            ["block*"],
            ["a", "b"],
            r"at: taps and teacher_taps must pair up, got 3 \(block1, block2, block3\) and 2 \(a, b\)",
        ),
        (["block*", "block3"], ["block*", "x"], r"at: names a tap twice: block2, block3, block3"),
        (
            ["block*"],
            ["block*.pre"],
            r"at: unknown tap 'block\*.pre': none of the taps \(block1, block2\) is a block.pre; ",
        ),
    ],
)
def test_lists_that_cannot_be_paired(student, teacher, message):
    with pytest.raises(UserError, match=f"^{message}"):
        paired("at", student, teacher, THREE, ["block1", "block2"])


@pytest.mark.parametrize("network", BLOCKS)
def test_a_network_gives_what_repdistiller_takes_of_it(network):
    last, count = f"block{BLOCKS[network]}", BLOCKS[network]
    wanted = {f"block{i}{pre}" for i in range(1, count + 1) for pre in ("", ".pre")}
    features = Tapped(build(network, 10).eval(), ["block*", "block*.pre"])(torch.zeros(2, 3, 32, 32)).features
    assert set(features) == wanted
    assert list(Tapped(build(network, 10), "block.last").paths) == [last]


TAPS = {
    "ab": ["block1.pre", "block2.pre", "block3.pre", "block4.pre"],
    "ofd": ["block1.pre", "block2.pre", "block3.pre", "block4.pre"],
    "ft": ["block4"],
    "sp": ["block4"],
    "at": ["block1", "block2", "block3", "block4"],
    "fsp": ["stem", "block1", "block2", "block3", "block4"],
}


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        *(
            (name, pair)
            for name in ("ab", "ofd")
            for pair in ("vgg13-MobileNetV2", "ResNet50-MobileNetV2", "ResNet50-vgg8")
        ),
        *((name, "MobileNetV2-resnet8x4") for name in ("ab", "ofd", "ft", "at")),
        *((name, "vgg13-MobileNetV2") for name in ("ft", "sp", "at")),
        ("fsp", "vgg13-vgg8"),
    ],
)
def test_a_step_on_networks_of_four_blocks(name, pair):
    torch.manual_seed(0)
    teacher, student = (build(network, 10) for network in pair.split("-"))
    loss = parse_loss({name: {}})
    strong, weak = Tapped(teacher, loss.teacher_taps).eval(), Tapped(student, loss.student_taps)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        theirs, probe = strong(images), weak.eval()(images)
    loss.setup(Task(10, 4, 1, probe, theirs, weak, strong))
    value = loss[0].term(weak.train()(images), theirs, batch(4, image=images))
    value.backward()
    assert value > 0
    trained = getattr(loss[0].term, "translator", loss[0].term).parameters()
    assert all(parameter.grad is not None for parameter in trained)
    if pair == "MobileNetV2-resnet8x4":  # the teacher's deepest three
        count = min(3, len(TAPS[name]))
        assert list(loss[0].term.teacher_taps) == TAPS[name][-count:]
        assert list(loss[0].term.student_taps) == [tap.replace("4", "3") for tap in TAPS[name][:count]]
    else:
        assert list(loss[0].term.student_taps) == list(loss[0].term.teacher_taps) == TAPS[name]


def test_weights_follow_the_taps():
    shapes = {"stem": (2, 8, 8), **{f"block{i}{pre}": (2, 4, 4) for i in (1, 2, 3, 4) for pre in ("", ".pre")}}
    probes = outputs(**shapes), outputs(1, **shapes)
    ab, fsp = (loss[0].term for loss in map(parse_loss, ("ab", "fsp")))
    for term in (ab, fsp):
        term.setup(Task(10, 4, 1, *probes))
    assert list(ab.weights) == [0.125, 0.25, 0.5, 1]
    assert list(fsp.weights) == [1, 1, 1, 1]
    three = parse_loss({"fsp": {"taps": ["stem", "block1", "block2", "block3"]}})[0].term
    assert list(three.weights) == [1, 3, 1]
    with pytest.raises(UserError, match="ab: weights must be one a tap, got 3 for 4 taps"):
        parse_loss({"ab": {"weights": [1, 1, 1]}})[0].term.setup(Task(10, 4, 1, *probes))
