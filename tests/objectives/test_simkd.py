"""simkd: maps of unequal size, and which map of student and teacher it takes or refuses."""

from __future__ import annotations

import pytest
import torch
from joint_students import answer, images, joined, of, run
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import load_student, save_student
from kdstream.models.taps import Tapped
from kdstream.objectives.common.connectors import pooled_maps
from kdstream.objectives.simkd import SimKD


@pytest.mark.parametrize(
    ("student", "teacher", "ours", "theirs", "tap"),
    [
        ("resnet8", "vgg8", 4, 2, "map"),  # the student's map is larger
        ("vgg8", "resnet8x4", 2, 4, "map"),  # the teacher's
        ("ResNet50", "resnet14", 2, 4, "block3"),
    ],
)
def test_the_larger_map_is_pooled(student, teacher, ours, theirs, tap, tmp_path):
    term = SimKD(connector="1x1", teacher_taps=tap)
    own, strong = of(student), of(teacher)
    maps = [Tapped(network, {"map": pooled_maps(network, images())[-1].path}).eval() for network in (own, strong)]
    sides = [tapped(images()).features["map"].shape[-1] for tapped in maps]
    assert sides == [ours, theirs]
    small = min(sides)
    before = maps[0](images()).features["map"]
    network, answered, of_teacher = joined(term, own, strong)
    head = network.head
    assert head.size == (None if ours == small else (small, small))
    connected = head.connector(F.adaptive_avg_pool2d(before, small))
    torch.testing.assert_close(answered.features["connector"], connected)
    torch.testing.assert_close(answered.logits, strong.get_submodule(strong.classifier_path)(connected.mean((2, 3))))
    wanted = F.mse_loss(connected, F.adaptive_avg_pool2d(of_teacher.features[tap], small))
    labels = torch.arange(6) % 5
    batch = Batch(images(), labels, torch.arange(6))
    torch.testing.assert_close(term(answered, of_teacher, batch), wanted)
    save_student(tmp_path, network)
    assert answer(load_student(tmp_path)).equal(answer(network))


def test_a_student_whose_map_is_not_known():
    with pytest.raises(UserError) as caught:
        SimKD().adapt(build("joint_students:Flattened", 5), of("resnet8"), images(2), build)
    assert str(caught.value) == "simkd: the student's classifier reads no averaged feature map; name one by taps"
    with pytest.raises(UserError) as caught:
        SimKD(taps="block9").adapt(of("resnet8"), of("resnet8x4"), images(2), build)
    assert str(caught.value) == (
        "simkd: the student has no feature map 'block9'; its maps are stem, block1, block1.pre, block2, block2.pre, "
        "block3, block3.pre, map"
    )


@pytest.mark.parametrize(
    ("name", "tap", "message"),
    [
        (
            "resnet8x4",
            "block2",
            "simkd: the teacher's 'block2' [128, 8, 8] is not the map that its classifier averages; set teacher_taps: "
            "map",
        ),
        (
            "vgg8",
            "block3",
            "simkd: the teacher's 'block3' [512, 2, 2] is not the map that its classifier averages; set teacher_taps: "
            "map",
        ),
        (
            "wrn_10_1",
            "block3",
            "simkd: the teacher's 'block3' [64, 4, 4] is not the map that its classifier averages; set teacher_taps: "
            "map",
        ),
        (
            "resnet8x4",
            "penultimate",
            "simkd: the teacher's 'penultimate' [256] is not the map that its classifier averages; set teacher_taps: "
            "map",
        ),
    ],
)
def test_another_map_of_the_teacher(name, tap, message):
    with pytest.raises(UserError) as caught:
        joined(SimKD(teacher_taps=tap), of("resnet8"), of(name))
    assert str(caught.value) == message


class Unnamed(nn.Module):
    """Averages a map that its taps do not name."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, num_classes)
        self.taps = {"block1": "conv"}

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.act(self.conv(images)).mean((2, 3)))


def test_a_teacher_whose_taps_do_not_name_the_map():
    with pytest.raises(UserError) as caught:
        joined(SimKD(teacher_taps="block1"), of("resnet8"), build(f"{__name__}:Unnamed", 5))
    assert str(caught.value) == (
        "simkd: the teacher's 'block1' [4, 14, 14] is not the map that its classifier averages; name that one in the "
        "recipe, teacher.taps={map: 'act'}, and here, teacher_taps: map"
    )


def test_a_wide_resnet_teaches(digits, tmp_path):
    """The map that its classifier averages comes after its last block."""
    run(digits, tmp_path / "teacher", student="wrn_10_1", loss="ce")
    run(digits, tmp_path / "student", teacher={"weights": str(tmp_path / "teacher")}, loss="simkd")
    assert load_student(tmp_path / "student").head.classifier.weight.equal(load_student(tmp_path / "teacher").fc.weight)
