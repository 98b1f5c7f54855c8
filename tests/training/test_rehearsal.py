"""Rehearsals: what cannot work is said before a teacher is trained, and nothing else changes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from jobs import recipe_of, run
from rich.console import Console

import kdstream as kd
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import save_student
from kdstream.stream.shards import open_shards
from kdstream.training import job as jobs_module
from kdstream.training.job import Job
from kdstream.training.progress import Display
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
        ({"loss": {"rkd": {}, "ce": 1}, "batch_size": 2}, r"^recipe job: rkd: .* at least 3 samples .* gives one 2"),
        ({"loss": {"sp": {}, "ce": 1}, "batch_size": 1}, r"^recipe job: sp: .* at least 2 samples .* gives one 1"),
        ({"student": "mobilenet_v3_small", "batch_size": 1}, r"single sample, of which BatchNorm has no statistics"),
        ({"loss": {"spearman": {"ranks": "exact"}}}, r"the loss of phase main depends on nothing that is trained"),
        ({"loss": "at", "student": "alexnet"}, r"^recipe job: unknown tap 'block1': taps of alexnet are"),
        ({"loss": {"ofd": {"taps": ["block9"]}, "ce": 1}}, r"unknown tap 'block9'"),
        (
            {"loss": "at", "teacher": {**TRAINED, "model": "mobilenet_v3_small"}},
            r"^recipe job: unknown tap .block1.: taps of",
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
    with pytest.raises(UserError, match=r"unknown tap 'block1'"):
        rehearse(recipe, train, teacher, place)


def test_fresh_deletes_nothing_before_the_rehearsal(digits, tmp_path):
    run(recipe_of(digits, tmp_path / "job", epochs=1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    wrong = recipe_of(digits, tmp_path / "job", teacher=TRAINED, loss=UNEQUAL, student="resnet8x4")
    with pytest.raises(UserError, match="channels"):
        Job(wrong, Accelerator(cpu=True), Display(enabled=False), fresh=True).run()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_both_of_two_processes_end_with_it(digits, tmp_path):
    recipe = recipe_of(digits, tmp_path / "runs" / "job", teacher=TRAINED, loss=UNEQUAL, student="resnet8x4")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(kd.__file__).parent / "train.py"
    done = subprocess.run(
        [*launch, script, "--cpu", tmp_path / "r.yaml"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "error: recipe job: fsp: " in done.stderr
    assert "error in process 1: recipe job: fsp: " in done.stderr
    assert not (tmp_path / "runs").exists()


# --- what is right


def test_training_is_the_same_without_it(digits, tmp_path, monkeypatch):
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(jobs_module, "rehearse", lambda *args: None)
        loss = {**KD, "fitnet": 1, "crd": {"nce_k": 16}}
        run(
            recipe_of(
                digits, tmp_path / name / "job", teacher=TRAINED, loss=loss, stream=CODED,
                assistants=["resnet8x4"], epochs=1,
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
        recipe = recipe_of(digits, "nowhere", loss={"dml": {"peers": [peer]}})
        assert (rehearse(recipe, train, None, place) is not None) == known


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
