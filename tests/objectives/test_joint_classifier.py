"""SRRL, SimKD and IJCKD: trained on digits, exported and loaded again; what of the teacher's they take and how."""

from __future__ import annotations

import pytest
import torch
from joint_students import Flattened, answer, images, joined, of, run
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import load_student
from kdstream.models.taps import Tapped
from kdstream.objectives import parse_loss
from kdstream.objectives.ijckd import IJCKD
from kdstream.objectives.simkd import SimKD
from kdstream.objectives.srrl import SRRL
from kdstream.training.metrics import read_metrics

CONNECTORS = {"1x1": [1], "1x1-1x1": [1, 1], "1x1-3x3-1x1": [1, 3, 1]}


@pytest.mark.parametrize(
    ("loss", "student", "size"),
    [
        ({"simkd": {}}, "resnet8", None),
        ({"simkd": {"connector": "1x1"}}, "vgg8", [2, 2]),
        ({"ijckd": {}}, "resnet18", [1, 1]),
        ({"ijckd": {"connector": "1x1-1x1", "beta": 1, "mid_channels": 5}}, "MobileNetV2", [1, 1]),
        ({"ijckd": {"connector": "1x1-3x3-1x1", "alpha_ce": 0.2}}, "wrn_10_1", None),
        ({"ijckd": {"taps": "block2"}}, "resnet8", None),
    ],
)
def test_a_joint_student_is_what_its_export_gives(digits, teacher, trained, tmp_path, loss, student, size):
    result = run(digits, tmp_path, teacher=teacher, student=student, loss=loss)
    assert result["model"] == student
    (network,) = trained
    loaded = load_student(tmp_path)
    assert loaded.spec == network.spec
    assert answer(loaded).equal(answer(network))
    assert loaded.classes == [str(digit) for digit in range(10)]
    settings = next(iter(loss.values()))
    kernels = [conv.kernel_size[0] for conv in network.head.modules() if isinstance(conv, nn.Conv2d)]
    default = "1x1-3x3-1x1" if "simkd" in loss else "1x1"
    assert kernels == CONNECTORS[settings.get("connector", default)]
    # The classifier is the teacher's to the last bit; the network before it has been trained.
    frozen = load_student(teacher).fc
    assert network.head.classifier.weight.equal(frozen.weight)
    assert network.head.classifier.bias.equal(frozen.bias)
    assert not any(parameter.requires_grad for parameter in network.head.classifier.parameters())
    torch.manual_seed(0)
    fresh = build(student, 10).state_dict()
    kept = network.backbone.module.state_dict()
    assert {name.rpartition(".")[0] for name in fresh.keys() - kept.keys()} == {build(student, 10).classifier_path}
    behind = "layer3" if "taps" in settings else "fc"  # what comes after the map that goes on
    assert not any(
        kept[name].equal(fresh[name]) for name in kept if kept[name].ndim == 4 and not name.startswith(behind)
    )
    # Maps of other sizes: the larger one is pooled, the student's before its connector.
    tapped = Tapped(network, ["connector", "penultimate"])
    features = tapped.eval()(images()).features
    assert list(features["connector"].shape[1:]) == [64, *_size(network, student)]
    torch.testing.assert_close(features["connector"].mean((2, 3)), features["penultimate"])
    assert _size(network, student) == (size or [4, 4])


def _size(network: nn.Module, student: str) -> list[int]:
    """Of the map that the connector gives."""
    return list(Tapped(network, ["connector"]).eval()(images()).features["connector"].shape[2:])


@pytest.mark.parametrize("loss", [{"simkd": {"connector": "1x1-1x1"}}, {"ijckd": {}}, {"ce": 1, "srrl": 1}])
def test_a_run_that_dies_after_an_epoch_ends_with_the_same_bits(digits, teacher, tmp_path, monkeypatch, loss):
    settings = {"teacher": teacher, "loss": loss, "epochs": 2, "stream": "decode | augment(cifar, pad=1)"}
    run(digits, tmp_path / "whole", **settings)
    from kdstream.training import loop as fit

    plain = fit.Trainer._save

    def dying(self, optimizer):
        plain(self, optimizer)
        raise KeyboardInterrupt  # the first epoch is saved

    with monkeypatch.context() as patched:
        patched.setattr(fit.Trainer, "_save", dying)
        with pytest.raises(KeyboardInterrupt):
            run(digits, tmp_path / "cut", **settings)
    assert not (tmp_path / "cut" / "student.safetensors").exists()
    run(digits, tmp_path / "cut", **settings)
    for name in ("student.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_they_learn(digits, teacher, tmp_path):
    for name in ("simkd", "ijckd"):
        result = run(digits, tmp_path / name, teacher=teacher, loss=name, epochs=10)
        losses = [row["loss"] for row in read_metrics(tmp_path / name) if row["kind"] == "epoch"]
        assert losses[-1] < 0.7 * losses[0]
        assert result["top1"] > 50  # by the teacher's classifier; SimKD sees no label at all


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("make", [SimKD, IJCKD, SRRL])
def test_connectors(make, connector):
    term = make(connector=connector)
    network, student, teacher = joined(term, of("resnet8"), of("resnet8x4"))
    module = term.connector if make is SRRL else network.head.connector
    widths = [64, *[128] * (len(CONNECTORS[connector]) - 1), 256]  # between them half of the teacher's width
    convolutions = [(64 if i == 0 else widths[i], widths[i + 1], k) for i, k in enumerate(CONNECTORS[connector])]
    expected = student.features[term.student_taps[0]]
    if make is not SRRL:
        expected = Tapped(network, {"map": f"backbone.module.{network.backbone.paths['map']}"})(images()).features[
            "map"
        ]
    for number, (inputs, width, kernel) in enumerate(convolutions, 1):
        convolution, norm = getattr(module, f"conv{number}"), getattr(module, f"bn{number}")
        assert (convolution.in_channels, convolution.out_channels) == (inputs, width)
        assert convolution.kernel_size == (kernel, kernel)
        assert convolution.bias is None
        expected = F.relu(norm(convolution(expected)))
    assert expected.shape == teacher.features["map"].shape
    connected = term.connect(student) if make is SRRL else student.features["connector"]
    torch.testing.assert_close(connected, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [SimKD, IJCKD, SRRL])
def test_half_precision_stays_finite(make, dtype):
    term = make()
    _, student, teacher = joined(term, of("resnet8"), of("resnet8x4"))
    batch = Batch(images(), torch.arange(6) % 5, torch.arange(6))
    expected = term(student, teacher, batch).detach()
    with torch.autocast("cpu", dtype):
        value = term(student.map(lambda t: t.to(dtype)), teacher.map(lambda t: t.to(dtype)), batch)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach(), expected, rtol=0.05, atol=0)


class Convolutional(nn.Module):
    """A network without any linear layer."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))


UNUSABLE = "the teacher's classifier reads no averaged feature map: it cannot be reused"


@pytest.mark.parametrize("make", [SimKD, IJCKD, SRRL])
@pytest.mark.parametrize("teacher", [Convolutional, Flattened])
def test_a_teacher_whose_classifier_cannot_be_reused(make, teacher):
    term = make()
    weak = build(f"{teacher.__module__}:{teacher.__name__}", 5)
    with pytest.raises(UserError) as caught:
        term.adapt(of("resnet8"), weak, images(2), build)
    assert str(caught.value) == f"{term.owner}: {UNUSABLE}"


@pytest.mark.parametrize("make", [SimKD, IJCKD, SRRL])
def test_a_job_without_a_teacher(make):
    term = make()
    with pytest.raises(UserError) as caught:
        term.adapt(of("resnet8"), None, images(2), build)
    assert str(caught.value) == f"{term.owner}: needs a teacher, but the job has none; name one or drop {term.owner}"


def test_the_students_map_may_be_a_module():
    for term in (SimKD(taps="layer2.0"), SRRL(taps="layer2.0")):
        network, student, _ = joined(term, of("resnet8"), of("resnet8x4"))
        module = term.connector if isinstance(term, SRRL) else network.head.connector
        assert module.conv1.in_channels == 32
        assert student.logits.shape == (6, 5)


def test_a_teacher_of_other_classes_and_a_joint_student():
    with pytest.raises(UserError) as caught:
        SimKD().adapt(of("resnet8", 4), of("resnet8x4", 5), images(2), build)
    assert str(caught.value) == "simkd: the teacher's classifier has 5 classes, the data has 4"
    network, _, _ = joined(SimKD(), of("resnet8"), of("resnet8x4"))
    with pytest.raises(UserError, match=r"^ijckd: the student answers through a teacher's classifier already; "):
        IJCKD().adapt(network, of("resnet8x4"), images(2), build)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"simkd": {"connector": "2x2"}},
            "simkd: connector must be 1x1, 1x1-1x1, 1x1-3x3-1x1 or another odd chain, got '2x2'",
        ),
        (
            {"ijckd": {"connector": 1}},
            "ijckd: connector must be 1x1, 1x1-1x1, 1x1-3x3-1x1 or another odd chain, got 1",
        ),
        ({"srrl": {"mid_channels": 0}}, "srrl: mid_channels must be a whole number >= 1, got 0"),
        (
            {"ijckd": {"alpha_ce": 0, "alpha": 0}},
            "ijckd: alpha_ce, alpha and beta are all 0, which leaves nothing to learn; set one > 0",
        ),
        (
            {"srrl": {"alpha": 0, "beta": 0}},
            "srrl: alpha and beta are both 0, which leaves nothing to learn; set one > 0",
        ),
        ({"srrl": {"alpha": -1}}, "srrl: alpha must be a finite number >= 0, got -1"),
        ({"simkd": {"taps": ["block2", "block3"]}}, "simkd: taps must be one tap, got block2, block3"),
    ],
)
def test_mistakes_in_settings(loss, message):
    with pytest.raises(UserError) as caught:
        parse_loss(loss)
    assert str(caught.value).removeprefix("loss.") == message


@pytest.mark.parametrize("names", [("one", "simkd"), ("simkd", "one")])
def test_two_surgeries_are_refused_in_either_order(digits, teacher, tmp_path, names):
    with pytest.raises(
        UserError, match=r"^recipe recipe: (simkd: another term has changed the student; |kdstream.models.joint)"
    ):
        run(digits, tmp_path, teacher=teacher, loss=dict.fromkeys(names, 1))


def test_no_copies_of_a_joint_student_are_made(digits, teacher, tmp_path):
    with pytest.raises(UserError, match=r"^recipe recipe: dml: there can be no copies of a student that another term "):
        run(digits, tmp_path, teacher=teacher, loss={"simkd": 1, "dml": 1})
    run(digits, tmp_path, teacher=teacher, loss={"simkd": 1, "dml": {"peers": ["resnet8"]}})
