"""The commands table, tables and report on a table of digits: interrupted, continued, shared, reported, picked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_tables import TABLE, write_table

from kdstream.cli import main

# One student beside its teacher; the rest of the table is quoted.
SMALL = TABLE.replace("runs_averaged: 2\n", "").replace("kd: {label", "kd: {quoted: true, label").replace(
    "ckd: {quoted: true, label: CKD", "ckd: {label: CKD"
)  # fmt: skip
SMALL = SMALL.replace("student: {label: Student, of: student}", "student: {label: Student, of: student, quoted: true}")


@pytest.fixture
def here(tmp_path, monkeypatch, digits):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, digits, SMALL)
    return tmp_path


def command(*arguments):
    return [sys.executable, "-m", "kdstream", *arguments]


def test_a_table_is_interrupted_goes_on_is_shared_and_reported(here, digits, capfd):
    overrides = ["epochs=2", "stream=decode | augment(cifar, pad=1, flip=false)"]
    # Stopped within the teacher's training, as soon as its first epoch is saved.
    process = subprocess.Popen(command("table", "small.yaml", "--cpu", *overrides), start_new_session=True, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    deadline = time.monotonic() + 240
    while not list(here.glob("runs/cells/teachers/*/last.pt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert "interrupted: what is trained is saved; the same command continues" in said
    (teacher,) = here.glob("runs/cells/teachers/*")
    # The same command goes on.
    assert main(["table", "small.yaml", "--cpu", *overrides]) == 0
    said = capfd.readouterr().out
    assert [path.parent for path in here.glob("runs/cells/teachers/*/result.json")] == [teacher]
    (student,) = here.glob("runs/cells/*-seed0/result.json")
    assert "2 cells, 1 seed each" in said
    before = student.stat().st_mtime_ns
    # What another table asks for is there.
    write_table(here, digits, SMALL.replace("paper: small", "paper: other"), "other.yaml")
    assert main(["table", "other.yaml", *overrides]) == 0
    assert "all done" in capfd.readouterr().out
    assert student.stat().st_mtime_ns == before
    # By train it is the same training.
    assert main(["train", "small.yaml", "teacher=resnet14", "student=resnet8", "loss=ckd", "--cpu", *overrides]) == 0
    assert "finished before" in capfd.readouterr().out
    assert student.stat().st_mtime_ns == before
    # Reported: with what the training wrote.
    assert main(["report", "small.yaml", "--out", "x/report.html", *overrides]) == 0
    printed = capfd.readouterr().out
    found = json.loads(Path("x/report.json").read_text())
    by_row = {cell["row"]: cell for cell in found["cells"]}
    result = json.loads(student.read_text())
    assert by_row["ckd"]["last"] == {"mean": result["top1"], "std": None, "seeds": 1}
    assert by_row["ckd"]["best"]["mean"] == result["best_top1"]
    assert by_row["ckd"]["difference"] == pytest.approx(result["best_top1"] - 74.0)
    assert by_row["teacher"]["last"]["mean"] == json.loads((teacher / "result.json").read_text())["top1"]
    for text in (printed, Path("x/report.html").read_text(), Path("x/report.md").read_text()):
        assert f"last {result['top1']:.2f}" in text
        assert "74.0" in text
    # At the table's own epochs nothing is done.
    assert main(["tables", "small.yaml"]) == 0
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("small.yaml"))
    assert line.split()[-3:] == ["5", "2", "0"]


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(here, capsys):
    before = set(here.rglob("*"))
    assert main(["table", "small.yaml", "--dry-run", "--seeds", "3", "data.path=nowhere"]) == 0
    said = capsys.readouterr().out
    assert "2 cells, 3 seeds each: 4 trainings left, 1 of them teachers', 4 epochs" in said
    assert "4 epochs without an estimate: their data is not here" in said
    assert set(here.rglob("*")) == before
    cell = ["--cell", "resnet14-resnet8:teacher"]
    assert main(["table", "small.yaml", "--dry-run", *cell, "--cpu", "batch_size=8"]) == 0
    said = capsys.readouterr().out
    assert "1 cells, 1 seed each: 1 trainings left" in said
    assert "hours one after the other on this cpu, by 50 steps of each pair" in said
    assert set(here.rglob("*")) == before


def test_a_training_that_cannot_be_is_told_by_its_line(here, capfd):
    cell = ["--cell", "resnet14-resnet8:teacher"]
    assert main(["table", "small.yaml", "--cpu", "--jobs", "2", *cell, "data.path=nowhere"]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: 1 of 1 trainings failed, first teacher resnet14: error: ")
    assert "nowhere" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "nowhere"], r"no recipe 'nowhere'"),
        (["table", "quickstart"], r"'quickstart' is a recipe, no table"),
        (["table", "small.yaml", "--cell", "a:b"], r"--cell: no cell 'a:b'"),
        (["table", "small.yaml", "--methods", "kdd"], r"--methods: no 'kdd': did you mean 'kd'?"),
        (["table", "small.yaml", "--methods", "search"], r"table small: nothing of it is trained (quoted)"),
        (["table", "small.yaml", "--jobs", "0"], r"argument --jobs: '0' is no positive whole number; see --help"),
        (["table", "small.yaml", "epohcs=3"], r"unknown setting 'epohcs': did you mean 'epochs'?"),
        (["table", "small.yaml", "seeds=3"], r"table small: seeds= is not for tables: --seeds says how many seeds"),
        (["report", "small.yaml", "--add", "nowhere"], r"--add nowhere: no such folder"),
        (["report", "nowhere"], r"no recipe 'nowhere'"),
        (["tables", "nowhere"], r"no recipe 'nowhere'"),
        (["train", "small.yaml"], r"small.yaml is a table, and this names 2 cells of it: pick one by cell=COLUMN:ROW"),
        (["train", "small.yaml", "loss=kdd"], r"small.yaml is a table, and this names no cells of it"),
        (["train", "quickstart", "--only-teacher", "teacher=null"], r"recipe quickstart has no teacher: name one"),
    ],
)
def test_bad_input_is_one_line(here, capsys, arguments, message):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not Path("runs").exists()


def test_only_the_teacher_is_trained_where_that_is_asked(here, digits):
    text = "base: settings\nteacher: {model: resnet8, train: {}}\nstudent: resnet8\nloss: kd\nstream: decode\n"
    Path("mine.yaml").write_text(text)
    assert main(["train", "mine.yaml", "--only-teacher", "--cpu"]) == 0
    assert len(list(here.glob("runs/teachers/*/student.safetensors"))) == 1
    assert not (here / "runs" / "mine").exists()


def test_all_tables_of_kdstream_are_listed(here, capsys):
    assert main(["tables"]) == 0
    said = capsys.readouterr().out
    # 1,972 words stand in the papers; tables 11 and 12 of 002 print tables 1 to 4 once more.
    assert "59 tables and figures, 1,777 printed values. " in said
    assert "in brackets: 195 more that repeat another table's" in said
    assert set(os.listdir()) == {"small.yaml", "settings.yaml"}
