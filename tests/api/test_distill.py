"""distill: objects, names and weights in one call; twice in a process; interrupted; one line for a mistake."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal

import pytest
import torch
from torch import nn

import kdstream as kd
from kdstream.display.progress import Display
from kdstream.hashing import weights_hash

FEW = {"epochs": 1, "batch_size": 60, "workers": 0, "cpu": True, "show": False}
FEW |= {"stream": "decode | augment(cifar, pad=1, flip=false)", "optimizer": {"lr": 0.1}}


class Tiny(nn.Module):
    """Images [N,3,H,W] -> logits [N,10]."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 2)
        self.last = nn.Linear(width, 10)

    def forward(self, images):
        return self.last(self.conv(images).relu().mean((2, 3)))


@pytest.fixture
def data(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(digits, tmp_path / "digits")


def test_modules_need_no_path_and_what_is_kept_for_a_teacher_is_found_again(data, tmp_path):
    torch.manual_seed(0)
    teacher, student = Tiny(16), Tiny()
    before = weights_hash(student)
    coded = {**FEW, "stream": "decode | coded(hkl, delta=50, plan=auto) | augment(cifar, pad=1, flip=false)"}
    first = kd.distill(data, student=student, teacher=teacher, **coded)
    assert weights_hash(student) == before != weights_hash(first.student)
    assert first.folder.parent.name == "runs"
    assert first.folder.name.startswith("digits-Tiny-ce+kd-")
    (plan,) = data.glob("*.coding-*.bin")
    made = plan.stat().st_mtime_ns
    kd.distill(data, student=Tiny(4), teacher=copy.deepcopy(teacher), **coded)
    assert [(one, one.stat().st_mtime_ns) for one in data.glob("*.coding-*.bin")] == [(plan, made)]
    # The export holds weights and the name of the class, and says so.
    about = json.loads(first.paths["student.json"].read_text())
    assert about["spec"]["name"].endswith("test_distill.Tiny")
    assert "load_student(folder, module=...)" in about["rebuild"]
    with pytest.raises(kd.UserError, match=r"Tiny, which was given as an object.*module="):
        kd.load_student(first)
    loaded = kd.load_student(first, module=Tiny())
    assert weights_hash(loaded) == weights_hash(first.student)
    assert kd.evaluate(loaded, data, device="cpu").top1 == pytest.approx(first.top1)
    assert len(loaded.predict(torch.zeros(3, 16, 16), top=3).top) == 3
    assert len(first.history) == 1
    assert "<iframe" in first.report()._repr_html_()
    assert "top-1" in first._repr_html_()


def test_a_second_call_takes_another_precision_and_the_first_ones_result(data):
    teacher = kd.distill(data, student="resnet8", loss="ce", **FEW)
    again = kd.distill(data, student="resnet8", loss="ce", **FEW)
    assert again.metrics == teacher.metrics
    student = kd.distill(data, student="resnet8", teacher=teacher, precision="bf16", out="runs/b", **FEW)
    assert (student.folder.name, student.name.partition("-ce+kd")[0]) == ("b", "digits-resnet8")
    assert kd.evaluate(student, data, device="cpu").samples == 240


def test_ctrl_c_saves_and_the_same_call_continues(data, monkeypatch):
    call = {"student": "resnet8", "loss": "ce", **FEW, "epochs": 2}
    whole = kd.distill(data, **call, out="whole")
    end = Display.end_epoch

    def interrupted(self, row, speed):
        end(self, row, speed)
        if row["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "end_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt, match="the same call continues"):
            kd.distill(data, **call, out="half")
    with pytest.raises(kd.UserError, match="not finished"):
        kd.load_student("half")
    best = kd.load_student("half", checkpoint="best")
    assert kd.evaluate(best, data, device="cpu").top1 == pytest.approx(whole.history[0]["val/top1"])
    part = kd.load_student("half", checkpoint="last")
    assert part.predict(torch.zeros(3, 16, 16)).label in part.classes
    made = kd.export_onnx("half", "half.onnx", checkpoint="last")
    assert made.shape == (3, 16, 16)
    continued = kd.distill(data, **call, out="half")
    assert weights_hash(continued.student) == weights_hash(whole.student)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"student": 3}, "student is a int"),
        ({}, "student is missing"),
        ({"student": "resnet8", "seeds": 3}, "call it once for each"),
        ({"student": "resnet8", "epoch": 3}, "unknown setting 'epoch'"),
        ({"student": "resnet8", "loss": "kd"}, "needs a teacher"),
    ],
)
def test_a_mistake_is_one_line(call, said, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kd.UserError, match=said) as error:
        kd.distill(digits, **call, show=False)
    assert "\n" not in str(error.value)
