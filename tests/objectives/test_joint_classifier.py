"""SRRL, SimKD and IJCKD: trained on digits, exported and loaded again; what of the teacher's they take and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from kdstream.batch import Batch, Outputs
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import load_student, save_student
from kdstream.models.taps import Tapped
from kdstream.objectives import Task, parse_loss
from kdstream.objectives.common.connectors import map_distance, pooled_maps
from kdstream.objectives.ijckd import IJCKD
from kdstream.objectives.simkd import SimKD
from kdstream.objectives.srrl import SRRL
from kdstream.recipe import make_recipe
from kdstream.training.job import Job
from kdstream.training.metrics import read_metrics

CONNECTORS = {"1x1": [1], "1x1-1x1": [1, 1], "1x1-3x3-1x1": [1, 3, 1]}


def run(digits: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """A job of a few steps."""
    recipe = {
        "data": {"path": str(digits)},
        "student": "resnet8",
        "stream": "decode | augment(cifar, pad=1, flip=false)",
        "epochs": 1,
        "batch_size": 48,
        "workers": 0,
        "tensorboard": False,
        "optimizer": {"lr": 0.1},
        "schedule": {"name": "cosine", "warmup": 0.5},
        "out": str(out),
        **settings,
    }
    (result,) = Job(make_recipe(recipe, "joint"), Accelerator(cpu=True), Display(enabled=False)).run()
    return result


@pytest.fixture(scope="module")
def teacher(digits, tmp_path_factory) -> str:
    """The folder of a small teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    assert run(digits, folder, student="resnet14", loss="ce", epochs=8)["top1"] > 60
    return str(folder)


@pytest.fixture
def trained(monkeypatch) -> list[nn.Module]:
    """The networks that trainings export, as they were in training."""
    found: list[nn.Module] = []

    def save(folder: Path, network: nn.Module, **about: Any) -> None:
        found.append(network)
        save_student(folder, network, **about)

    monkeypatch.setattr("kdstream.training.results.save_student", save)
    return found


def images(count: int = 6, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


def answer(network: nn.Module, size: int = 16) -> Tensor:
    with torch.no_grad():
        return network.eval()(images(size=size))


# --------------------------------------------------------------------------------------------------------- in training


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


def test_srrl_exports_the_student_with_its_own_classifier(digits, teacher, trained, tmp_path):
    run(digits, tmp_path, teacher=teacher, student="vgg8", loss={"ce": 1, "srrl": {"connector": "1x1-1x1"}})
    (network,) = trained
    loaded = load_student(tmp_path)
    assert answer(loaded).equal(answer(network))
    assert loaded.spec == {"name": "vgg8", "num_classes": 10}
    assert loaded.state_dict().keys() == build("vgg8", 10).state_dict().keys()


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


# --------------------------------------------------------------------------------------------------------- of the parts


def joined(term: Any, student: nn.Module, teacher: nn.Module, size: int = 16) -> tuple[nn.Module, Outputs, Outputs]:
    """The adapted student, its answer and the teacher's, the term being set up as the trainer does it."""
    probe = images(2, size)
    for network in (student, teacher):
        network.eval()
    strong = Tapped(teacher, term.teacher_taps)
    network = term.adapt(student, teacher, probe, build)
    tapped = Tapped(network, term.student_taps).eval()
    with torch.no_grad():
        ours, theirs = tapped(probe), strong(probe)
        term.setup(Task(5, 9, 1, ours, theirs, tapped, strong, build=build))
        return network, tapped(images(size=size)), strong(images(size=size))


def of(name: str, classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(name, classes)


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


def test_ijckd_adds_labels_logits_and_maps():
    term = IJCKD(alpha_ce=0.2, alpha=0.5, beta=3, connector="1x1-1x1")
    _, student, teacher = joined(term, of("resnet8"), of("resnet8x4"))
    labels = torch.arange(6) % 5
    expected = 0.2 * F.cross_entropy(student.logits, labels)
    expected = expected + 0.5 * F.mse_loss(student.logits, teacher.logits)
    expected = expected + 3 * F.mse_loss(student.features["connector"], teacher.features["map"])
    torch.testing.assert_close(term(student, teacher, Batch(images(), labels, torch.arange(6))), expected)


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


@pytest.mark.parametrize("name", ["vgg8", "resnet8x4", "wrn_10_1", "MobileNetV2", "ShuffleV1", "ShuffleV2", "resnet18"])
def test_the_map_before_the_classifier_is_found_in_every_architecture(name):
    network = of(name).eval()
    place = pooled_maps(network, images(size=32))[-1]
    with torch.no_grad():
        answered = Tapped(network, {"map": place.path, "penultimate": network.taps["penultimate"]})(images(size=32))
    torch.testing.assert_close(answered.features["map"].mean((2, 3)), answered.features["penultimate"])
    assert answered.features["map"].shape[1:] == place.shape


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


def test_maps_of_equal_size_are_compared_as_they_are():
    ours, theirs = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(map_distance(ours, theirs), (ours - theirs).square().mean())


# ------------------------------------------------------------------------------------------------------------- mistakes


class Convolutional(nn.Module):
    """A network without any linear layer."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))


class Flattened(nn.Module):
    """A network whose classifier reads every position of the map."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, num_classes)
        self.taps = {"map": "conv"}

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).flatten(1))


UNUSABLE = "the teacher's classifier reads no averaged feature map: it cannot be reused"


@pytest.mark.parametrize("make", [SimKD, IJCKD, SRRL])
@pytest.mark.parametrize("teacher", [Convolutional, Flattened])
def test_a_teacher_whose_classifier_cannot_be_reused(make, teacher):
    term = make()
    weak = build(f"{__name__}:{teacher.__name__}", 5)
    with pytest.raises(UserError) as caught:
        term.adapt(of("resnet8"), weak, images(2), build)
    assert str(caught.value) == f"{term.owner}: {UNUSABLE}"


@pytest.mark.parametrize("make", [SimKD, IJCKD, SRRL])
def test_a_job_without_a_teacher(make):
    term = make()
    with pytest.raises(UserError) as caught:
        term.adapt(of("resnet8"), None, images(2), build)
    assert str(caught.value) == f"{term.owner}: needs a teacher, but the job has none; name one or drop {term.owner}"


def test_a_student_whose_map_is_not_known():
    with pytest.raises(UserError) as caught:
        SimKD().adapt(build(f"{__name__}:Flattened", 5), of("resnet8"), images(2), build)
    assert str(caught.value) == "simkd: the student's classifier reads no averaged feature map; name one by taps"
    with pytest.raises(UserError) as caught:
        SimKD(taps="block9").adapt(of("resnet8"), of("resnet8x4"), images(2), build)
    assert str(caught.value) == (
        "simkd: the student has no feature map 'block9'; its maps are stem, block1, block1.pre, block2, block2.pre, "
        "block3, block3.pre, map"
    )


def test_the_students_map_may_be_a_module():
    for term in (SimKD(taps="layer2.0"), SRRL(taps="layer2.0")):
        network, student, _ = joined(term, of("resnet8"), of("resnet8x4"))
        module = term.connector if isinstance(term, SRRL) else network.head.connector
        assert module.conv1.in_channels == 32
        assert student.logits.shape == (6, 5)


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


@pytest.mark.parametrize("names", [("srrl", "simkd"), ("simkd", "srrl")])
def test_srrl_finds_its_map_beside_simkd_in_either_order(digits, teacher, tmp_path, names):
    assert run(digits, tmp_path, teacher=teacher, loss=dict.fromkeys(names, 1))["top1"] > 0
