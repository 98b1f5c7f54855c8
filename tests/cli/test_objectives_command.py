"""kdstream objectives, and the page that it writes."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
from commands import refused

from kdstream.cli.objectives import main, markdown, signature, source, title
from kdstream.objectives import OBJECTIVES

PAGE = Path(__file__).parents[2] / "kdstream" / "objectives" / "README.md"


@pytest.fixture
def run(run_main, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return partial(run_main, main)


def test_the_table_has_a_line_for_every_objective(run):
    code, out, error = run()
    assert (code, error) == (0, "")
    names = [line.split()[0] for line in out.splitlines() if line[2:3].strip()]
    assert [name for name in names if name in OBJECTIVES] == list(OBJECTIVES)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_says_what_it_is_and_where_from(name):
    term = OBJECTIVES.find(name)
    what, paper = title(term)
    assert what
    assert paper or name == "ce"
    assert source(term), "its docstring has no paragraph that begins with 'Source: '"


def test_one_in_full(run):
    code, out, _ = run("wttm")
    assert code == 0
    assert out.startswith("wttm(gamma=0.1)")
    assert "eq. (22)" in out
    assert "cifar100/resnet32x4-resnet8x4" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["wtm"], "did you mean 'wttm'?"),
        (["--markdown", "no/such.json"], "no/such.json"),
        (["--markdwn", "x"], "--markdwn"),
        (["--markdown"], "argument --markdown: expected one argument; see --help"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, part):
    refused(run(*arguments), part)


def test_interrupted(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kdstream.cli.objectives._overview", interrupt)
    assert run() == (130, "", "interrupted\n")


def test_the_page_comes_from_a_bench(run, tmp_path):
    row = {"objective": "crd", "work": "crd", "trains": 81920, "median": 1.254}
    phase = {"objective": "ft", "work": "ft.paraphraser", "trains": 7, "median": 2.0}
    costs = {
        "bench": "step",
        "machine": {"cpu": "Some CPU", "torch": "2.11"},
        "settings": {"teacher": "resnet56", "student": "resnet20", "batch": 64},
        "objectives": [row, phase, {**phase, "work": "ft", "median": 1.1}],
    }
    (tmp_path / "step.json").write_text(json.dumps(costs))
    code, out, _ = run("--markdown", tmp_path / "step.json")
    assert code == 0
    assert "resnet56 and resnet20 at batch 64" in out
    line = next(line for line in out.splitlines() if line.startswith("| `crd` |"))
    assert line.endswith("| 81,920 | 1.25 |")
    line = next(line for line in out.splitlines() if line.startswith("| `ft` |"))
    assert line.endswith("| 7 | 2.00, phase; 1.10 |")


def test_the_page_is_up_to_date():
    """But for the bench's figures, which no test can know."""
    nothing = {"settings": {"teacher": "", "student": "", "batch": 0}, "machine": {"cpu": "", "torch": ""}}
    rows = [line.split(" | ") for line in markdown({**nothing, "objectives": []}) if line.startswith("| `")]
    found = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert [row[:5] for row in found] == [row[:5] for row in rows], (
        "write it anew: kdstream objectives --markdown FILE > kdstream/objectives/README.md"
    )
    assert len(rows) == len(OBJECTIVES)
    assert all(signature(OBJECTIVES.find(name)) in "".join(row) for name, row in zip(OBJECTIVES, rows, strict=True))


def test_the_readme_names_every_objective():
    text = (PAGE.parents[2] / "README.md").read_text()
    table = text.partition("| learns from | objectives |")[2].split("\n\n", 1)[0]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(OBJECTIVES)
