"""A published teacher in a job: shown beside its published accuracy, and trained here where it cannot be had."""

from __future__ import annotations

import io
import json
import re

import pytest
import torch
from accelerate import Accelerator
from jobs import recipe_of, run
from publishing import publish, save_as_repdistiller, serving
from rich.console import Console

import kdstream as kd
from kdstream.display.progress import Display
from kdstream.errors import UserError
from kdstream.hashing import weights_hash
from kdstream.models import build
from kdstream.training import job as jobs_module
from kdstream.training.job import Job
from kdstream.training.teacher_check import TEACHER_FILE

NAME = "published:net@digits"
KD = {"kd": 1, "ce": 0.1}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves an untrained network, listed as ``NAME``."""
    with serving(tmp_path / "served", monkeypatch) as server:
        torch.manual_seed(0)
        save_as_repdistiller(build("resnet8", 10).state_dict(), server.folder / "ckpt_epoch_240.pth")
        publish(server, monkeypatch, "net@digits")
        yield server


def told(recipe, fresh=False):
    """What a job prints, without line breaks."""
    text = io.StringIO()
    Job(recipe, Accelerator(cpu=True), Display(Console(file=text, width=2000)), fresh).run()
    return text.getvalue()


def take_away(server):
    """Nothing at the address, until ``give_back``."""
    path = server.folder / "ckpt_epoch_240.pth"
    path.rename(path.with_suffix(".away"))


def give_back(server):
    path = server.folder / "ckpt_epoch_240.pth"
    path.with_suffix(".away").rename(path)


def test_its_row_shows_both_accuracies_and_what_they_differ_by(digits, server, tmp_path):
    out = tmp_path / "out"
    printed = told(recipe_of(digits, out, teacher=NAME, loss=KD, epochs=1))
    found = json.loads((out / TEACHER_FILE).read_text())
    assert re.search(rf"teacher resnet8 +resnet8 +[\d,]+ +{found['top1']:.2f} +75\.00 ", printed)
    note = rf"teacher resnet8: it gets {found['top1']:.2f} % on the val split, 75\.00 % as published \({NAME}\)"
    assert re.search(note, printed)
    report = (out / "report.html").read_text()
    assert "published %" in report
    assert re.search(note, report)
    # What was found is read the next time; the published accuracy is no part of it.
    assert "75.00" in told(recipe_of(digits, out, teacher=NAME, loss=KD, epochs=1))
    assert "published" not in found


def test_its_mean_and_deviation_are_the_teachers(digits, server, tmp_path):
    settings = {"loss": KD, "epochs": 1}
    run(recipe_of(digits, tmp_path / "name", teacher=NAME, **settings))
    plain = {"weights": f"{server.url}/ckpt_epoch_240.pth", "mean": [0.5, 0.25, 0.125], "std": [0.5, 0.4, 0.3]}
    run(recipe_of(digits, tmp_path / "file", teacher=plain, **settings))
    one, two = (weights_hash(kd.load_student(tmp_path / name)) for name in ("name", "file"))
    assert one == two


def test_a_student_begins_with_them(digits, server, tmp_path):
    still = {"lr": 1e-12, "weight_decay": 0, "momentum": 0}
    run(recipe_of(digits, tmp_path / "out", student=NAME, optimizer=still, epochs=1))
    torch.manual_seed(0)
    expected = build("resnet8", 10).conv1.weight
    assert torch.allclose(kd.load_student(tmp_path / "out").conv1.weight, expected, atol=1e-6)


def test_where_it_cannot_be_had_a_line_says_what_to_do(digits, server, tmp_path):
    take_away(server)
    with pytest.raises(UserError, match=rf"^teacher: {NAME}: .* answers 404 Not Found; give .*, or say how to train"):
        run(recipe_of(digits, tmp_path / "out", teacher=NAME, loss=KD))
    with pytest.raises(UserError, match=rf"student: {NAME}: .* answers 404 Not Found; give a file of these weights$"):
        run(recipe_of(digits, tmp_path / "out", student=NAME))
    with pytest.raises(
        UserError, match=r"teacher\.weights: no published weights 'published:nett@digits': did you mean"
    ):
        run(recipe_of(digits, tmp_path / "out", teacher="published:nett@digits", loss=KD))
    assert not (tmp_path / "out").exists()


def test_teacher_train_stands_in_and_the_job_stays_with_it(digits, server, tmp_path):
    out = tmp_path / "out"
    # What is said of the published one's images does not hold for the one that is trained here.
    teacher = {"weights": NAME, "mean": [0.1, 0.1, 0.1], "std": [0.1, 0.1, 0.1], "train": {"epochs": 1}}
    settings = {"teacher": teacher, "epochs": 1, "runs": {"kd": {"loss": KD}}}
    take_away(server)
    printed = told(recipe_of(digits, out, **settings))
    assert re.search(rf"warning: teacher: {NAME}: .* 404 .*; a teacher is trained here .* 75\.00 %", printed)
    (row,) = re.findall(r"teacher resnet8 +resnet8 +[\d,]+ +([\d.]+) +75\.00", printed)
    (kept,) = (tmp_path / "teachers").iterdir()
    assert row == f"{json.loads((kept / 'result.json').read_text())['top1']:.2f}"
    assert "a teacher is trained here in its place" in (out / "report.html").read_text()
    # It is the teacher that the same settings train without a published one.
    told(recipe_of(digits, tmp_path / "plain", **{**settings, "teacher": {"model": "resnet8", "train": {"epochs": 1}}}))
    assert list((tmp_path / "teachers").iterdir()) == [kept]
    students = [weights_hash(kd.load_student(place / "kd")) for place in (out, tmp_path / "plain")]
    assert students[0] == students[1]
    # The address comes back: what was begun goes on as it began, and further runs have the same teacher.
    give_back(server)
    asked = len(server.asked)
    again = told(recipe_of(digits, out, **{**settings, "runs": {"kd": {"loss": KD}, "ce": {}}}))
    assert "is trained here in its place" in again
    assert len(server.asked) == asked
    anew = told(recipe_of(digits, out, **settings), fresh=True)
    assert "is trained here in its place" not in anew
    assert len(server.asked) == asked + 1


def test_it_is_not_trained_where_it_can_be_had(digits, server, tmp_path):
    teacher = {"weights": NAME, "train": {"epochs": 1}}
    told(recipe_of(digits, tmp_path / "out", teacher=teacher, loss=KD, epochs=1))
    assert not (tmp_path / "teachers").exists()


def test_all_processes_do_without_it_where_one_has_not_got_it(digits, server, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "gather_object", lambda mine: [*mine, "no route from there"])
    teacher = {"weights": NAME, "train": {"epochs": 1}}
    printed = told(recipe_of(digits, tmp_path / "out", teacher=teacher, loss=KD, epochs=1))
    assert "no route from there; a teacher is trained here" in printed
    assert (tmp_path / "teachers").is_dir()
