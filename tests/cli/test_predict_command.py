"""kdstream predict: a table, lines of JSON, and exit code 2 where a file cannot be read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import refused
from PIL import Image

from kdstream.analysis.predict import predict
from kdstream.api.students import load_student
from kdstream.models.export import save_student


@pytest.fixture
def run(network, tmp_path):
    save_student(tmp_path / "run", network, [f"class {i}" for i in range(10)], [0.4] * 3, [0.2] * 3, 16)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "run"


def test_a_table_of_all_that_can_be_read_and_exit_code_2(run_verb, run, tmp_path):
    (tmp_path / "bad.jpg").write_text("[bold]hello")
    code, out, err = run_verb("predict", run, tmp_path / "bad.jpg", "a.png", "--top", 2)
    expected = predict(load_student(run), tmp_path / "a.png", top=2)
    (name, share), (second, rest) = expected.top
    row = next(line for line in out.splitlines() if line.strip().startswith("a.png"))
    assert " ".join(row.split()) == f"a.png {name} {100 * share:.1f} {second} {100 * rest:.1f}"
    assert "bad.jpg: cannot be read: it is text" in " ".join(out.split())
    assert (code, err) == (2, "error: 1 of 2 files cannot be read\n")


def test_lines_of_json(run_verb, run, tmp_path):
    code, out, err = run_verb("predict", run, "a.png", "--json", "--top", 10, "--device", "cpu")
    assert (code, err) == (0, "")
    (line,) = [json.loads(line) for line in out.splitlines()]
    expected = predict(load_student(run), tmp_path / "a.png", top=10).top
    assert line == {"file": "a.png", "top": [{"class": name, "probability": share} for name, share in expected]}
    assert run_verb("predict", run, "none.png", "--json")[:2] == (
        2,
        '{"file": "none.png", "error": "cannot be read: No such file or directory"}\n',
    )


def test_a_mistake_is_one_line(run_verb, run, tmp_path):
    refused(run_verb("predict", tmp_path, "a.png"), f"holds several students: name one, as {run}")
    refused(run_verb("predict", run, "a.png", "--from", "last"), "no training began there")
    refused(run_verb("predict", "none", "a.png"), "no such file or folder")
    refused(run_verb("predict", run, "a.png", "--top", 0), "top is 0")
    refused(run_verb("predict", run, "a.png", "--size", 0), "size is 0")
