"""The command claims: lists, trains seed by seed, goes on, and writes the page of what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_tables import TABLE, write_table

from kdstream.cli import main

# A student beside a coded one, of a given teacher: two trainings a seed.
CLAIM = TABLE[: TABLE.index("values:")].replace("runs_averaged: 2\n", "") + "claims: [{order: ckd > student}]\n"
CLAIM = CLAIM.replace("  teacher: {label: Teacher, of: teacher}\n", "").replace(
    "  kd: {label", "  kd: {quoted: true, label"
)


@pytest.fixture
def here(tmp_path, monkeypatch, digits):
    def run_here(tasks, jobs, tell, advance, options=(), logs=None):  # that each has a process is test_table_command's
        for number, task in enumerate(tasks, 1):
            tell(f"[{number}/{len(tasks)}] {task.name}")
            assert main([*task.launch, *options]) == 0
        return []

    monkeypatch.setattr("kdstream.training.tables.work.run_tasks", run_here)
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, digits, CLAIM, "coded.yaml")
    return tmp_path


def test_claims_are_listed_trained_and_judged(here, capfd):
    assert main(["claims", "coded.yaml", "--dry-run", "--seeds", "2", "data.path=nowhere"]) == 0
    said = capfd.readouterr().out
    assert "1 claim, 2 seeds each: 5 trainings left, 1 of them teachers', 5 epochs" in said
    assert "Digits by a small network that learns from a little larger one. (small, table 1" in said
    assert not (here / "runs").exists()
    small = ["data.per_class=6", "batch_size=60", "--cpu"]
    assert main(["claims", "coded.yaml", "--page", "--seeds", "1", *small]) == 0
    assert "not decided yet" in capfd.readouterr().out
    assert not list(here.glob("runs/cells/*/result.json"))
    assert main(["claims", "coded.yaml", "--seeds", "1", "--out", "x/page.html", *small]) == 0
    said = capfd.readouterr().out
    assert "[1/3]" in said
    found = json.loads(Path("x/page.json").read_text())
    (claim,) = found["claims"]
    (line,) = claim["lines"]
    top1 = {row: line["values"][row]["0"] for row in ("student", "ckd")}
    results = [json.loads(path.read_text())["top1"] for path in here.glob("runs/cells/*-seed0/result.json")]
    assert sorted(top1.values()) == sorted(results)
    assert line["difference"]["mean"] == pytest.approx(top1["ckd"] - top1["student"])
    assert line["verdict"] == "not decided yet"
    assert found["about"]["versions"].startswith("kdstream ")
    for ending in (".html", ".md"):
        assert f"{line['difference']['mean']:+.2f}" in Path("x/page").with_suffix(ending).read_text()
    # The same command has nothing left.
    assert main(["claims", "coded.yaml", "--seeds", "1", *small]) == 0
    assert "0 trainings left" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no recipe 'claims/nothing'"),
        (["ckd/table5"], "'ckd/table5' claims nothing"),
        (["ckd", "epohcs=3"], "unknown setting 'epohcs'"),
        (["ckd", "--seeds", "0"], "argument --seeds: '0' is no positive whole number"),
    ],
)
def test_bad_input_is_one_line(here, arguments, message, capsys):
    assert main(["claims", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
