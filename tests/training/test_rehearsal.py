"""Rehearsals: what cannot work is said before a teacher is trained, and nothing else changes."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import Accelerator
from jobs import recipe_of, run
from PIL import Image
from processes import together
from rich.console import Console
from tars import write_tar
from torch import nn

import kdstream as kd
from kdstream.cli import train
from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import save_student
from kdstream.training import job as jobs_module
from kdstream.training.job import Job
from kdstream.training.rehearsal import rehearse

HERE = Path(__file__).stem
TRAINED = {"model": "resnet14", "train": {"loss": "ce"}}
CODED = "decode | augment(cifar, pad=1, flip=false) | coded(hkl, delta=50, plan=auto)"
KD = {"ce": 0.5, "kd": 0.5}
UNEQUAL = {"fsp": {"epochs": 1, "milestones": []}, "ce": 1}


@kd.batch_stage
def look_at_quality(batches):
    """A stage of one's own that needs what ``coded`` and ``teacher`` leave behind."""
    for batch in batches:
        assert batch.quality.shape == batch.label.shape
        assert batch.teacher.logits.shape == (len(batch), 10)
        yield batch


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def printed(recipe, **settings):
    """What a job says."""
    console = Console(file=io.StringIO(), width=200)
    Job(recipe, Accelerator(cpu=True), Display(console), **settings).run()
    return console.file.getvalue()


# --- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": UNEQUAL, "student": "resnet8x4"}, r"^recipe job: fsp: .*differ in channels"),
        ({"loss": {"kdsvd": {}, "ce": 1}, "student": "resnet8x4"}, r"^recipe job: kdsvd: .*differ in channels"),
        ({"loss": {"at": {"taps": ["penultimate"]}, "ce": 1}}, r"at: "),
        ({"loss": {"simkd": {"teacher_taps": "block1"}}}, r"simkd: the teacher's 'block1' .* is not the map"),
        ({"loss": {"one": {}, "kd": 1}, "student": "MobileNetV2"}, r"^recipe job: "),
        ({"loss": {"one": {}, "kd": 1}, "student": "vgg8"}, r"^recipe job: "),
        (
            {"loss": {"rkd": {}, "ce": 1}, "batch_size": 2},
            r"^recipe job: rkd: .* at least 3 samples, the smallest batch has 2",
        ),
        (
            {"loss": {"sp": {}, "ce": 1}, "batch_size": 1},
            r"^recipe job: sp: .* at least 2 samples, the smallest batch has 1",
        ),
        ({"student": "mobilenet_v3_small", "batch_size": 1}, r"single sample, of which BatchNorm has no statistics"),
        ({"loss": {"spearman": {"ranks": "exact"}}}, r"the loss of phase main depends on nothing that is trained"),
        (
            {"loss": "at", "student": "alexnet"},
            r"^recipe job: unknown tap 'block\*': none of the taps \(penultimate\) is a block; name block1",
        ),
        ({"loss": {"ofd": {"taps": ["block9"]}, "ce": 1}}, r"unknown tap 'block9'"),
        (
            {"loss": "at", "teacher": {**TRAINED, "model": "mobilenet_v3_small"}},
            r"^recipe job: unknown tap .block\*.: none of the taps \(.*\) is a block",
        ),
        ({"runs": {"good": {}, "bad": {"loss": UNEQUAL, "student": "resnet8x4"}}}, r"^recipe bad: fsp: .*channels"),
        ({"assistants": ["resnet8x4"], "loss": UNEQUAL}, r"^recipe assistant resnet8x4: fsp: .*channels"),
        ({"assistants": ["resnet8", "resnet8x4"], "loss": UNEQUAL}, r"^recipe assistant resnet8x4: fsp: .*channels"),
        ({"assistants": ["resnet8x4"], "runs": {"a": {"loss": UNEQUAL}}}, r"^recipe a: fsp: .*channels"),
    ],
)
def test_they_are_found_before_the_teacher_is_trained(digits, tmp_path, settings, message):
    recipe = recipe_of(digits, tmp_path / "runs" / "job", **{"teacher": TRAINED, "loss": KD, **settings})
    data = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    with pytest.raises(UserError, match=message) as error:
        run(recipe)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == data


def test_weights_of_another_data_set_are_found_too(digits, tmp_path):
    save_student(tmp_path / "strange", build("resnet8", 7))
    with pytest.raises(UserError, match=r"^recipe job: student: .*strange is for 7 classes, the data has 10"):
        run(recipe_of(digits, tmp_path / "job", teacher=TRAINED, loss=KD, student=str(tmp_path / "strange")))
    assert [path.name for path in tmp_path.iterdir()] == ["strange"]


def test_taps_of_timms_networks(digits):
    pytest.importorskip("timm", reason="an extra")
    recipe = recipe_of(digits, "nowhere", loss="at", student="timm:deit_tiny_patch16_224")
    train, place = open_shards(digits / "train"), Accelerator(cpu=True)
    teacher = rehearse(recipe_of(digits, "nowhere", student="resnet8"), train, None, place)
    with pytest.raises(UserError, match=r"unknown tap 'block\*'"):
        rehearse(recipe, train, teacher, place)


def test_fresh_deletes_nothing_before_the_rehearsal(digits, tmp_path):
    run(recipe_of(digits, tmp_path / "job", epochs=1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    wrong = recipe_of(digits, tmp_path / "job", teacher=TRAINED, loss=UNEQUAL, student="resnet8x4")
    with pytest.raises(UserError, match="channels"):
        Job(wrong, Accelerator(cpu=True), Display(enabled=False), fresh=True).run()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def of_two(folder: Path) -> None:
    """Leaves in <rank>.txt the exit code and what the command said."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = train.main(["--cpu", str(folder / "r.yaml")])
    (folder / f"{os.environ['RANK']}.txt").write_text(f"{code} {said.getvalue()}")


def test_both_of_two_processes_end_with_it(digits, tmp_path):
    recipe = recipe_of(digits, tmp_path / "runs" / "job", teacher=TRAINED, loss=UNEQUAL, student="resnet8x4")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    together(2, of_two, tmp_path)
    assert (tmp_path / "0.txt").read_text().startswith("2 error: recipe job: fsp: ")
    assert (tmp_path / "1.txt").read_text().startswith("2 error in process 1: recipe job: fsp: ")
    assert not (tmp_path / "runs").exists()


class View(nn.Module):
    """Flattens by view, which wants the images' usual memory format."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4 * 64, num_classes)

    def forward(self, images):
        images = self.conv(images)
        return self.fc(images.view(len(images), -1))


class Named(nn.Module):
    """Answers with an object that has logits, as transformers' classifiers do."""

    def __init__(self, num_classes, evaluates=True):
        super().__init__()
        self.fc, self.evaluates = nn.Linear(3, num_classes), evaluates

    def forward(self, images):
        logits = self.fc(images.mean((2, 3)))
        return SimpleNamespace(logits=logits) if self.training or self.evaluates else {"logits": logits}


@pytest.mark.parametrize("place", ["student", "teacher", "given teacher"])
def test_a_network_that_cannot_take_channels_last(digits, tmp_path, importable, place):
    view, settings = f"{HERE}:View", {"loss": KD, "teacher": TRAINED, "channels_last": True, "epochs": 1}
    if place == "student":
        settings["student"] = view
    elif place == "teacher":
        settings["teacher"] = {**TRAINED, "model": view}
    else:
        save_student(tmp_path / "given", build(view, 10))
        settings["teacher"] = {"model": view, "weights": str(tmp_path / "given")}
    message = r"does not work in the memory format channels_last \(view size .*\): set channels_last=false$"
    with pytest.raises(UserError, match=message) as error:
        run(recipe_of(digits, tmp_path / "runs" / "job", **settings))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists(), "no teacher was trained"
    if place == "student":
        run(recipe_of(digits, tmp_path / "runs" / "job", **{**settings, "channels_last": False, "loss": "ce"}))


def test_it_stays_an_error_of_the_network_where_the_memory_format_is_not_at_fault(digits, importable):
    recipe = recipe_of(digits, "nowhere", student=f"{HERE}:Broken", channels_last=True)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        rehearse(recipe, open_shards(digits / "train"), None, Accelerator(cpu=True))


class Broken(nn.Sequential):
    """Wrong in any memory format, once it is trained."""

    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(768, num_classes))

    def forward(self, images):
        return super().forward(images[..., :8] if self.training else images)


def test_the_validation_set_is_tried(make_tars, tmp_path, importable):
    make_tars(tmp_path / "set", train=[0, 1] * 8, val=[0, 1])
    png = io.BytesIO()
    Image.new("RGB", (9, 8)).save(png, "png")
    write_tar(tmp_path / "set" / "val" / "1.tar", [("9.png", png.getvalue()), ("9.cls", b"0")])
    settings = {"teacher": TRAINED, "loss": KD, "batch_size": 8}
    message = r"^recipe .*: validation set \(val of .*\), eval_stream: batch 0 .*different sizes \(8x8 and 8x9\)"
    with pytest.raises(UserError, match=message):
        run(recipe_of(tmp_path / "set", tmp_path / "runs" / "job", **settings))
    assert not (tmp_path / "runs").exists()


def test_networks_that_answer_with_an_object_are_evaluated_too(digits, tmp_path, importable):
    name = f"{HERE}:Named"
    loss = {"kd": 0.5, "dml": {"peers": [name]}}
    (result,) = run(
        recipe_of(digits, tmp_path / "job", student=name, teacher={"model": name, "train": {"loss": "ce"}}, loss=loss,
                  epochs=1)
    )  # fmt: skip
    assert result["networks"].keys() == {"student", "peer1"}
    wrong = {"model": name, "options": {"evaluates": False}}
    val = open_shards(digits / "val")
    with pytest.raises(UserError, match=rf"^recipe job: {name} answers with dict, not with a tensor of logits"):
        rehearse(recipe_of(digits, "nowhere", student=wrong), open_shards(digits / "train"), None,
                 Accelerator(cpu=True), val)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("conv1.weight", float("nan"), r"^teacher: 432 of the 432 values of 'conv1.weight' are not finite"),
        ("fc.bias", float("inf"), r"^teacher: 10 of the 10 values of 'fc.bias' are not finite"),
        ("bn1.running_mean", float("-inf"), r"^teacher: .* of 'bn1.running_mean' are not finite"),
        ("bn1.running_var", -1.0, r"^teacher: the variance 'bn1.running_var' is below zero"),
        ("fc.weight", 3e38, r"^recipe job: the teacher's answer to the first images is not finite \(logits\)"),
    ],
)
def test_a_teacher_that_is_not_finite(digits, tmp_path, key, value, message):
    state = build("resnet8", 10).state_dict()
    state[key] = torch.full_like(state[key], value)
    torch.save(state, tmp_path / "teacher.pth")
    teacher = {"model": "resnet8", "weights": str(tmp_path / "teacher.pth")}
    with pytest.raises(UserError, match=message) as error:
        run(recipe_of(digits, tmp_path / "out", teacher=teacher, loss=KD))
    assert not any(word in str(error.value) for word in ("lr", "last.pt", "\n"))
    assert not (tmp_path / "out").exists()


def test_a_student_that_is_not_finite(digits, tmp_path):
    state = build("resnet8", 10).state_dict()
    torch.save({**state, "conv1.weight": state["conv1.weight"] * float("nan")}, tmp_path / "s.pth")
    with pytest.raises(UserError, match=r"student: 432 of the 432 values of 'conv1.weight' are not finite"):
        run(recipe_of(digits, tmp_path / "out", student={"model": "resnet8", "weights": str(tmp_path / "s.pth")}))


# --- what is right


def test_training_is_the_same_without_it(digits, tmp_path, monkeypatch):
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(jobs_module, "rehearse", lambda *args: None)
        loss = {**KD, "fitnet": 1, "crd": {"nce_k": 16}}
        run(
            recipe_of(
                digits, tmp_path / name / "job", teacher={**TRAINED, "model": "resnet8"}, loss=loss, stream=CODED,
                assistants=["resnet8"], epochs=1,
            )
        )  # fmt: skip
    ours, theirs = (
        {path.parent.name: path for path in (tmp_path / n).rglob("*.safetensors")} for n in ("with", "without")
    )
    assert len(ours) == 3
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].read_bytes() == theirs[name].read_bytes(), name


def test_random_states_stay(digits):
    recipe = recipe_of(digits, "nowhere", loss="ce")
    train = open_shards(digits / "train")
    before = torch.get_rng_state()
    rehearse(recipe, train, None, Accelerator(cpu=True))
    assert torch.get_rng_state().equal(before)


def test_what_is_finished_is_not_rehearsed(digits, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(
        jobs_module, "rehearse", lambda recipe, *rest: (tried.append(recipe.name), rehearse(recipe, *rest))[1]
    )
    recipe = recipe_of(
        digits,
        tmp_path / "job",
        teacher=TRAINED,
        loss=KD,
        epochs=1,
        assistants=["resnet8"],
        runs={"a": {}, "b": {"seed": 1}},
    )
    run(recipe)
    assert tried == ["teacher resnet14", "assistant resnet8", "a", "b"]
    tried.clear()
    run(recipe)
    assert tried == []
    run(recipe.model_copy(update={"runs": {**recipe.runs, "c": {"seed": 2, "assistants": []}}}))
    assert tried == ["teacher resnet14", "c"]


def test_an_assistant_that_another_network_stands_in_for_teaches_the_next(digits, tmp_path):
    """simkd exports the student with the teacher's classifier: the rehearsal goes on with such a network."""
    links = [{"model": "resnet8", "train": {"loss": "simkd"}}]
    (result,) = run(
        recipe_of(
            digits,
            tmp_path / "job",
            teacher=TRAINED,
            assistants=links,
            loss={"simkd": {"teacher_taps": "connector"}},
            epochs=1,
        )
    )
    assert result["model"] == "resnet8"


def test_a_teacher_trained_with_branches_teaches_as_it_is_exported(digits, tmp_path):
    teacher = {"model": "resnet14", "train": {"loss": {"one": {"export": "ensemble"}}}}
    (result,) = run(recipe_of(digits, tmp_path / "job", teacher=teacher, loss=KD, epochs=1))
    assert result["teacher"]["entropy"][0] > 0


def test_a_choice_among_different_networks_is_left_to_the_training(digits):
    train, place = open_shards(digits / "train"), Accelerator(cpu=True)
    for peer, known in (("resnet8", True), ("resnet14", False)):
        recipe = recipe_of(digits, "nowhere", loss={"dml": {"peers": [peer]}}, export_network="best")
        assert (rehearse(recipe, train, None, place) is not None) == known
        assert rehearse(recipe.model_copy(update={"export_network": "student"}), train, None, place) is not None


def test_a_stage_of_ones_own_finds_what_coded_leaves(digits, tmp_path, importable):
    save_student(tmp_path / "teacher", build("resnet14", 10))
    stream = f"{CODED} | teacher | {HERE}:look_at_quality"
    run(recipe_of(digits, tmp_path / "job", teacher=str(tmp_path / "teacher"), loss=KD, stream=stream, epochs=1))


def test_weights_are_not_downloaded(digits, monkeypatch):
    from torchvision.models import _api

    def refuse(*args, **settings):
        raise AssertionError("a download")

    monkeypatch.setattr(_api, "load_state_dict_from_url", refuse)
    student = {"model": "mobilenet_v3_small", "options": {"weights": "DEFAULT"}}
    recipe = recipe_of(digits, "nowhere", student=student)
    assert rehearse(recipe, open_shards(digits / "train"), None, Accelerator(cpu=True)) is not None


# --- what a loss of labels alone leaves out


def test_coded_is_left_out_aloud(digits, tmp_path):
    said = printed(recipe_of(digits, tmp_path / "a" / "job", stream=CODED, epochs=1, loss={"ce": 1, "one": {}}))
    assert said.count("coded is left out: no term of ce, one looks at a teacher\n") == 1
    plain = {"stream": CODED, "epochs": 1, "teacher": TRAINED, "loss": KD}
    assert "left out" not in printed(recipe_of(digits, tmp_path / "b" / "job", **plain))
    assert "left out" not in printed(
        recipe_of(digits, tmp_path / "b" / "job", **plain, runs={"labels": {"loss": "ce"}, "kd": {}})
    )


def test_a_teacher_that_nobody_looks_at_is_not_trained(digits, tmp_path):
    said = printed(recipe_of(digits, tmp_path / "job", teacher=TRAINED, loss="one", epochs=1))
    assert "teacher resnet14 is left out: no term of the loss looks at it\n" in said
    assert not (tmp_path / "teachers").exists()
    printed(
        recipe_of(
            digits, tmp_path / "more", teacher=TRAINED, loss="one", runs={"one": {}, "kd": {"loss": KD}}, epochs=1
        )
    )
    assert len(list((tmp_path / "teachers").iterdir())) == 1
