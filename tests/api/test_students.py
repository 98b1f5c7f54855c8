"""load_student: predicts; copies and pickles predict with their own weights; networks that have the name keep it."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import kdstream as kd
from kdstream.api.students import predicting
from kdstream.models import build
from kdstream.models.export import save_student


def test_a_student_predicts_and_so_do_its_copies(tmp_path):
    save_student(tmp_path, build("resnet8", 3), ["a", "b", "c"], [0.5] * 3, [0.2] * 3, 16)
    student = kd.load_student(tmp_path)
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    top = student.predict(image).top
    assert top == kd.predict(student, image).top
    file = io.BytesIO()
    torch.save(student, file)
    file.seek(0)
    for other in (copy.deepcopy(student), torch.load(file, weights_only=False)):
        nn.init.zeros_(other.fc.weight)
        nn.init.zeros_(other.fc.bias)
        assert [share for _, share in other.predict(image).top] == pytest.approx([1 / 3] * 3)
    assert student.predict(image).top == top
    with pytest.raises(kd.UserError, match="instead of"):
        kd.load_student(tmp_path, module=build("resnet14", 4))


def test_a_network_keeps_a_predict_of_its_own():
    class Own(nn.Module):
        def predict(self):
            return "own"

    assert predicting(Own()).predict() == "own"
