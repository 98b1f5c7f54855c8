"""Measured: a pass finds what the network says, keeps it, and takes the teacher's from the result."""

from __future__ import annotations

import json

import pytest
import torch
from jobs import recipe_of, run

import kdstream as kd
from kdstream.data.altered import alter
from kdstream.data.shards import open_shards
from kdstream.training.tables.finished import Done
from kdstream.training.tables.measured import NAMES, UNITS, value_of


def test_what_a_finished_training_tells(digits, tmp_path):
    assert set(UNITS) == set(NAMES)
    folder = tmp_path / "out"
    recipe = recipe_of(digits, folder, data={"path": str(digits), "per_class": 4}, loss="ce", epochs=1)
    (result,) = run(recipe)
    done = Done(0, folder, {"top1": result["top1"]}, {})
    assert value_of("top1", recipe, done) == result["top1"]
    assert value_of("teacher_entropy", recipe, done) is None
    # By hand, over the student's own 40 images.
    network = kd.load_student(folder)
    shards = alter(open_shards(digits / "train"), per_class=4)
    (batch,) = kd.Stream(shards, 40, train=False) | kd.decode() | kd.normalize(mean=shards.mean, std=shards.std)
    with torch.no_grad():
        q = network(batch.image).softmax(1)
    assert value_of("student_entropy", recipe, done) == pytest.approx(float(-(q * q.log()).sum(1).mean()), rel=1e-4)
    assert 0 < value_of("calibration_error", recipe, done) < 100
    # Kept: what is in the file counts.
    kept = json.loads((folder / "answers.json").read_text())
    assert set(kept) == {"student_entropy", "calibration_error"}
    (folder / "answers.json").write_text(json.dumps({**kept, "student_entropy": 7.0}))
    assert value_of("student_entropy", recipe, done) == 7.0
    (folder / "result.json").write_text(json.dumps({**result, "teacher": {"entropy": [0.5, 0.1]}}))
    assert value_of("teacher_entropy", recipe, done) == 0.5
