"""srrl: the student keeps its own classifier, the teacher's stays frozen, and its map is found beside other terms."""

from __future__ import annotations

import pytest
import torch
from joint_students import answer, images, joined, of, run
from torch.nn import functional as F

from kdstream.batch import Batch
from kdstream.models import build
from kdstream.models.export import load_student
from kdstream.objectives.srrl import SRRL


def test_srrl_exports_the_student_with_its_own_classifier(digits, teacher, trained, tmp_path):
    run(digits, tmp_path, teacher=teacher, student="vgg8", loss={"ce": 1, "srrl": {"connector": "1x1-1x1"}})
    (network,) = trained
    loaded = load_student(tmp_path)
    assert answer(loaded).equal(answer(network))
    assert loaded.spec == {"name": "vgg8", "num_classes": 10}
    assert loaded.state_dict().keys() == build("vgg8", 10).state_dict().keys()


def test_srrl_holds_the_teachers_classifier_frozen():
    term = SRRL(alpha=2, beta=0.5)
    strong = of("resnet8x4")
    plain = of("vgg8")
    network, student, teacher = joined(term, plain, strong)
    assert network is plain
    assert term.teacher["fc"].weight.equal(strong.fc.weight)
    assert term.teacher["fc"].weight is not strong.fc.weight
    assert {name.partition(".")[0] for name, p in term.named_parameters() if p.requires_grad} == {"connector"}
    connected = term.connector(student.features["srrl.map"])
    logits = strong.fc(connected.mean((2, 3)))
    expected = 2 * F.mse_loss(logits, teacher.logits)
    expected = expected + 0.5 * F.mse_loss(connected, F.adaptive_avg_pool2d(teacher.features["map"], 2))
    value = term(student, teacher, Batch(images(), torch.zeros(6).long(), torch.arange(6)))
    torch.testing.assert_close(value, expected)
    value.backward()
    assert term.teacher["fc"].weight.grad is None
    assert all(p.grad is not None for p in term.connector.parameters())


@pytest.mark.parametrize("names", [("srrl", "simkd"), ("simkd", "srrl")])
def test_srrl_finds_its_map_beside_simkd_in_either_order(digits, teacher, tmp_path, names):
    assert run(digits, tmp_path, teacher=teacher, loss=dict.fromkeys(names, 1))["top1"] > 0
