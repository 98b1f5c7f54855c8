"""Presets: every published setting is one that the terms take, the tables agree, and how a recipe names them."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from kdstream.batch import Batch
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.taps import Tapped
from kdstream.objectives import OBJECTIVES, Task, parse_loss
from kdstream.objectives.loss import Loss
from kdstream.objectives.presets import expanded, presets, term_presets, term_settings
from kdstream.training.distiller import Distiller

README = Path(__file__).parents[1] / "golden" / "README-logits.md"


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_loss(name):
    preset = presets()[name]
    loss = parse_loss({"preset": name})
    assert {term: weight for term, weight, _ in loss} == {
        term: settings.get("weight", 1) for term, settings in preset.loss.items()
    }
    assert len(preset.source) > 10
    assert "/" in preset.family


@pytest.mark.parametrize(
    ("row", "data"),
    [
        ("repdistiller/kd", "cifar100 imagenet/resnet34-resnet18"),
        ("ckd/kd", "cifar100 cub200 stanford_dogs imagenet/resnet34-resnet18 imagenet1pct/resnet50-mobilenet_v2"),
        ("itrd/itrd", "cifar100/resnet110-resnet20 cifar100/ResNet50-vgg8 imagenet/resnet34-resnet18"),
        ("mdistiller/dkd", "cifar100/resnet110-resnet20 cifar100/wrn_40_2-resnet8x4"),
        ("reviewkd/reviewkd", "cifar100/vgg13-vgg8 cifar100/vgg13-MobileNetV2 cifar100/ResNet50-MobileNetV2"),
        ("mdistiller/reviewkd", "imagenet/resnet50-mobilenetv1"),
        ("cmkd/dkd+cmkd", "cifar100/wrn_40_2-resnet8x4 cifar100/vgg13-MobileNetV2 imagenet/resnet50-mobilenetv1"),
        ("ijckd/ijckd", "cifar100/alpha_ce-0 cifar100/alpha_ce-0.5 cifar100/features cifar100/labels"),
        ("ttm/wttm", "imagenet/deit3_small-deit_tiny"),
        ("cls_kd/kd", "imagenet/deit3_small-deit_tiny"),
        *(
            (f"mdistiller/{term}", "imagenet/resnet34-resnet18 imagenet/resnet50-mobilenetv1")
            for term in ("kd", "at", "crd")
        ),
        *((row, "imagenet/resnet34-resnet18 imagenet/resnet50-mobilenetv1") for row in ("srrl/srrl", "kdpp/kdpp")),
        ("ctkd/ctkd", "imagenet/resnet34-resnet18"),
    ],
)
def test_rows_of_the_papers_have_their_preset(row, data):
    assert [name for name in data.split() if f"{row}/{name}" not in presets()] == []


def test_ranks_are_softened_by_the_classes_of_the_data_and_not_of_the_paper():
    """With CIFAR-100's strength a student of ten classes learns nothing: the term has its own by default."""
    softened = {name: preset.loss["cmkd"] for name, preset in presets().items() if "cmkd" in preset.loss}
    assert len(softened) == 2 + 12 + 2
    assert not any("strength" in settings for settings in softened.values())


def test_short_names_belong_to_terms_that_exist():
    assert {term for preset in presets().values() for term in preset.loss} <= OBJECTIVES.keys()
    for term in OBJECTIVES:
        for name, full in term_presets(term).items():
            assert all(term_settings(term, other) == presets()[other].loss[term] for other in full)
            if len(full) == 1:
                assert term_settings(term, name) == presets()[full[0]].loss[term]


ZOO = {"WRN-": "wrn_", "res": "resnet", "VGG": "vgg", "R50": "ResNet50", "MV2": "MobileNetV2", "SV": "ShuffleV"}


def pair(text: str) -> str:
    """ "WRN-40-2→16-2" as the presets call it."""
    teacher, student = text.split("→")
    if student[0].isdigit():  # of the teacher's family
        student = teacher[: next(i for i, letter in enumerate(teacher) if letter.isdigit())] + student
    names = []
    for name in (teacher, student):
        start = next(start for start in ZOO if name.startswith(start))
        names.append((ZOO[start] + name[len(start) :]).replace("-", "_"))
    return f"cifar100/{'-'.join(names)}"


def tables() -> list[tuple[str, str, list[float]]]:
    """Tables 8 and 9 of the TTM paper as the golden values' README has them: (row, pair, numbers)."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.read_text().splitlines()
        if line.startswith(("| CIFAR-100,", "| TTM |", "| WTTM"))
    ]
    found, pairs = [], []
    for first, *rest in cells:
        if first.startswith("CIFAR-100,"):
            pairs = [pair(text) for text in rest]
        else:
            found += [
                (first, name, [float(number) for number in cell.split(",")])
                for name, cell in zip(pairs, rest, strict=True)
            ]
    return found


FAMILIES = {
    "TTM": "ttm/ttm",
    "WTTM": "ttm/wttm",
    "WTTM+CRD": "ttm/wttm+crd",
    "WTTM+ITRD": "ttm/wttm+itrd",
    "WTTM without CE ($\\gamma$)": "ttm/wttm-without-ce",
}


def test_the_tables_of_transformed_teacher_matching():
    rows = tables()
    assert len(rows) == 5 * 7 + 4 * 6
    for row, name, (gamma, *beta) in rows:
        loss = presets()[f"{FAMILIES[row]}/{name}"].loss
        term = "ttm" if row == "TTM" else "wttm"
        assert loss[term] == {"weight": beta[0] if beta else 1, "gamma": gamma}, (row, name)
        assert ("ce" in loss) == bool(beta)
        assert ("crd" in loss, "itrd" in loss) == ("CRD" in row, "ITRD" in row)
        if row == "WTTM+CRD":
            assert loss["crd"] == {"weight": 0.8}
        if row == "WTTM+ITRD":
            without = name in {
                f"cifar100/{pair}" for pair in ("ResNet50-MobileNetV2", "ResNet50-vgg8", "wrn_40_2-ShuffleV1")
            }
            alike = name.removeprefix("cifar100/").split("-")
            alpha = 1.01 if alike[0][:3] == alike[1][:3] else 1.5
            assert loss["itrd"] == {"weight": 1, "beta_corr": 2, "beta_mi": 0 if without else 1, "alpha_it": alpha}


def combinations() -> list[str]:
    """The presets of transformed teacher matching that add another term."""
    return [name for name, preset in presets().items() if preset.family in ("ttm/wttm+crd", "ttm/wttm+itrd")]


@functools.cache
def answering(name: str) -> Tapped:
    torch.manual_seed(0)
    return Tapped(build(name, 100), ["penultimate"])


@pytest.mark.parametrize("name", combinations())
def test_a_step_of_every_combination(name):
    a_step(name, *map(answering, name.rpartition("/")[2].split("-")))


@pytest.mark.parametrize("family", ["at", "sp", "vid", "nst", "fitnet", "kd", "reviewkd", "ofd", "itrd"])
def test_a_step_of_public_presets_on_networks_of_four_blocks(family):
    owner = family if family in ("reviewkd", "ofd", "itrd") else "repdistiller"
    pair = "/vgg13-MobileNetV2" if family in ("reviewkd", "itrd") else ""
    name = f"{owner}/{family}/cifar100{pair}"
    loss = parse_loss({"preset": name})
    a_step(name, *taught("vgg13-MobileNetV2", loss))


@pytest.mark.parametrize(("name", "pair"), [("ab", "vgg13-MobileNetV2"), ("ft", "vgg13-vgg8"), ("fsp", "vgg13-vgg8")])
def test_presets_with_a_phase_on_networks_of_four_blocks(name, pair):
    student = pair.partition("-")[2]
    loss = parse_loss({"preset": f"repdistiller/{name}/cifar100/{student}"})
    strong, weak = taught(pair, loss)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs, ours = strong.eval()(images), weak.eval()(images)
    loss.setup(Task(100, 400, 1, ours, theirs, weak, strong))
    ((summand, phase),) = loss.phases()
    value = getattr(summand.term, phase.loss)(ours, theirs, Batch(images, torch.zeros(2).long(), torch.arange(2)))
    assert value.isfinite()
    assert value > 0
    assert summand.term.student_taps[-1].startswith("block4")


def taught(pair: str, loss: Loss) -> tuple[Tapped, Tapped]:
    """Teacher and student of a pair, with the taps of a loss."""
    teacher, student = (answering(network).module for network in pair.split("-"))
    return Tapped(teacher, loss.teacher_taps), Tapped(student, loss.student_taps)


def test_a_step_of_both_dkd_and_cmkd():
    a_step("cmkd/dkd+cmkd/cifar100/resnet56-resnet20", answering("resnet56"), answering("resnet20"))


def a_step(name: str, teacher: Tapped, student: Tapped) -> None:
    """One step of a preset's last stage: finite, and everything in training has a gradient."""
    labels = torch.randint(100, (400,), generator=torch.Generator().manual_seed(0))
    index = torch.tensor([3, 399, 17])
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        strong = teacher.eval()(images)
        probe = student.eval()(images[:2])
    batch = Batch(images, labels[index], index, teacher=strong)
    terms = parse_loss({"preset": name})
    task = Task(100, 400, 1, probe, strong.map(lambda t: t[:2]), student, teacher, labels, build)
    torch.manual_seed(0)
    for _, _, term in terms:
        term.setup(task)
    distiller = Distiller(student, terms)
    parameters = distiller.begin(distiller.stages()[-1], batch.map_tensors(lambda t: t[:2]))
    loss, values, _ = distiller(batch)
    loss.backward()
    assert values.isfinite().all()
    torch.testing.assert_close(loss.detach(), sum(w * v for (_, w, _), v in zip(terms, values, strict=True)))
    assert all(parameter.grad.isfinite().all() for parameter in parameters)
    trained = {id(parameter) for parameter in parameters}
    assert {id(p) for _, _, term in terms for p in term.parameters()} <= trained  # embeddings
    assert all(id(p) in trained for p in student.parameters())


def test_a_terms_preset():
    ((name, weight, term),) = parse_loss({"wttm": {"preset": "cifar100/resnet32x4-resnet8x4"}})
    assert (name, weight, term.gamma) == ("wttm", 3, 0.1)


def test_own_settings_go_before_a_terms_preset():
    loss = parse_loss({"ce": 1, "wttm": {"gamma": 0.5, "preset": "cifar100/resnet32x4-resnet8x4"}})
    assert [(name, weight) for name, weight, _ in loss] == [("ce", 1), ("wttm", 3)]
    assert loss[1].term.gamma == 0.5
    ((_, weight, _),) = parse_loss({"wttm": {"weight": 7, "preset": "cifar100/resnet32x4-resnet8x4"}})
    assert weight == 7


def test_a_term_out_of_a_whole_loss():
    assert term_settings("wttm", "ttm/wttm+crd/cifar100/vgg13-vgg8") == {"weight": 4, "gamma": 0.2}


def test_the_same_values_from_two_papers_need_no_choice():
    assert len(term_presets("kd")["cifar100"]) > 1
    assert term_settings("kd", "cifar100") == {"weight": 0.9, "temperature": 4}


def test_a_whole_loss_with_changes():
    loss = {"preset": "beyond/at/cifar100", "at": {"p": 3}, "ce": 0.5, "kd": {"preset": "cifar100", "weight": 2}}
    assert expanded(loss) == {
        "ce": {"weight": 0.5},
        "at": {"weight": 1000, "p": 3},
        "kd": {"weight": 2, "temperature": 4},
    }
    assert [(name, weight) for name, weight, _ in parse_loss(loss)] == [("ce", 0.5), ("at", 1000), ("kd", 2)]


def test_what_is_no_preset_passes():
    loss = {"ce": 1, "kd": None, "at": [3], 4: 1}
    assert expanded(loss) == loss


def test_a_change_of_settings_leaves_the_data_alone():
    term_settings("kd", "cifar100")["temperature"] = 9
    expanded({"preset": "ttm/kd/cifar100"})["kd"]["temperature"] = 9
    assert term_settings("kd", "cifar100")["temperature"] == 4


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"wttm": {"preset": "cifar100/resnet32x4-resnet8x"}},
            "loss.wttm: unknown preset 'cifar100/resnet32x4-resnet8x': did you mean 'cifar100/resnet32x4-resnet8x4'?",
        ),
        (
            {"preset": "ttm/wttm+crd/cifar100/resnet32x4-resnet8"},
            "loss: unknown preset 'ttm/wttm+crd/cifar100/resnet32x4-resnet8': did you mean "
            "'ttm/wttm+crd/cifar100/resnet32x4-resnet8x4'?",
        ),
        (
            {"kd": {"preset": "zzz"}},
            "loss.kd: unknown preset 'zzz': known: cifar10, cifar100, cifar100/wrn_40_2-ShuffleV1, ",
        ),
        (
            {"wttm": {"preset": "zzz"}},
            "loss.wttm: unknown preset 'zzz': known: cifar100/ResNet50-MobileNetV2, cifar100/ResNet50-vgg8, "
            "cifar100/resnet110-resnet20, cifar100/resnet110-resnet32, cifar100/resnet32x4-ShuffleV1, ...; all: "
            "kdstream objectives wttm",
        ),
        (
            {"ce": {"preset": "zzz"}},
            "loss.ce: unknown preset 'zzz': known: ttm/kd/cifar100, ttm/ttm/cifar100, ",
        ),
        ({"preset": 3}, "loss: unknown preset 3: known: beyond/..., ckd/..., "),
        ({"preset": "ttm"}, "loss: unknown preset 'ttm': choose one of ttm/kd/..., ttm/label_smoothing/..., "),
        (
            {"kd": {"preset": "ttm/wttm+crd"}},  # a family without kd is no misspelling of another
            "loss.kd: unknown preset 'ttm/wttm+crd': known: cifar10, cifar100, cifar100/wrn_40_2-ShuffleV1, ",
        ),
        ({"dkd": {"preset": "cifar100"}}, "loss.dkd: unknown preset 'cifar100': choose cifar100/wrn_40_2-wrn_16_2, "),
        ({"logit_mse": {"preset": "cifar100"}}, "loss.logit_mse: has no presets; those that have: ab, at, "),
        (
            {"fitnet": {"preset": "cifar100"}},
            "loss.fitnet: preset 'cifar100' is published with different values: choose beyond/fitnet/cifar100 or "
            "repdistiller/fitnet/cifar100",
        ),
        (
            {"wttm": {"preset": "cifar100/vgg13-vgg8", "gama": 1}},
            "loss.wttm: unknown setting 'gama': did you mean 'gamma'?",
        ),
        ({"preset": "ttm/kd/cifar100", "kd": "much"}, "loss.kd: weight must be a finite number >= 0, got 'much'"),
        ({"preset": "ttm/kd/cifar100", "kdd": 1}, "loss: unknown objective 'kdd': did you mean 'kd'?"),
    ],
)
def test_mistakes(loss, message):
    with pytest.raises(UserError) as caught:
        parse_loss(loss)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("family", sorted({preset.family for preset in presets().values()}))
def test_a_family_lists_its_own_presets(family):
    own = [full for full in presets() if full.startswith(f"{family}/")]
    expected = ", ".join([*own[:5], *(["..."] if len(own) > 5 else [])])
    for name in (family, f"{family}/..."):
        with pytest.raises(UserError) as caught:
            expanded({"preset": name})
        assert str(caught.value) == f"loss: unknown preset {name!r}: choose {expected}"
