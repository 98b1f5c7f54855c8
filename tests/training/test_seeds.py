"""Seeds: every run once a seed with one teacher, and what they reach together."""

from __future__ import annotations

import json
import statistics

import pytest
from jobs import recipe_of, run

from kdstream.training.seeds import over_seeds, rows_over_seeds


def test_numbers_over_seeds_are_those_of_hand():
    results = {
        "plain": {0: {"top1": 70.0, "best_top1": 71.0}, 1: {"top1": 72.0, "best_top1": 75.0}},
        "kd": {0: {"top1": 71.0, "best_top1": 71.0}, 1: {"top1": 75.0, "best_top1": 75.0}},
    }
    found = over_seeds(results)
    plain, kd = found["runs"].values()
    assert (plain["top1"]["mean"], plain["top1"]["std"], plain["best_top1"]["mean"]) == (
        71.0,
        pytest.approx(2**0.5),
        73,
    )
    assert "over_first" not in plain
    assert (kd["over_first"]["mean"], kd["over_first"]["pairs"]) == (2.0, 2)  # 1 and 3
    assert kd["over_first"]["low"] == pytest.approx(2 - 12.7062, abs=1e-3)  # std / sqrt(2) = 1
    rows = rows_over_seeds(found)
    assert rows[0] == {"run": "plain", "seeds": 2, "top-1 %": "71.00 ± 1.41", "best epoch, top-1 %": "73.00 ± 2.83",
                       "over plain, 95 %": None}  # fmt: skip
    assert rows[1]["over plain, 95 %"] == "+2.00 (-10.71 to +14.71)"
    assert over_seeds({}) == {}
    assert rows_over_seeds({}) == []


def test_every_run_is_trained_once_a_seed_with_one_teacher_and_more_seeds_go_on(digits, tmp_path):
    teacher = {"model": "resnet8", "train": {"loss": "ce"}}
    runs = {"alone": {"loss": "ce"}, "kd": {"loss": {"ce": 1, "kd": 1}}}
    settings = {"teacher": teacher, "runs": runs, "epochs": 1, "seed": 3}
    out = tmp_path / "runs" / "job"
    single = run(recipe_of(digits, tmp_path / "runs" / "single", **settings))
    two = run(recipe_of(digits, out, **settings, seeds=2))
    assert len(list((tmp_path / "runs" / "teachers").iterdir())) == 1
    assert [result["name"] for result in two] == ["alone, seed 3", "alone, seed 4", "kd, seed 3", "kd, seed 4"]
    # The seed of the recipe gives what the recipe without seeds gives, in its own folder; another seed does not.
    assert [two[0]["top1"], two[2]["top1"]] == [one["top1"] for one in single]
    assert [two[0]["fingerprint"], two[2]["fingerprint"]] == [one["fingerprint"] for one in single]
    assert len({result["fingerprint"] for result in two}) == 4
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/seed*/result.json")}
    assert len(stamps) == 4
    more = run(recipe_of(digits, out, **settings, seeds=[3, 4, 9]))
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    found = json.loads((out / "results.json").read_text())
    values = [result["top1"] for result in more if result["name"].startswith("kd")]
    assert found["runs"]["kd"]["seeds"] == [3, 4, 9]
    assert found["runs"]["kd"]["top1"]["values"] == values
    assert found["runs"]["kd"]["top1"]["std"] == pytest.approx(statistics.stdev(values))
    page = (out / "report.html").read_text()
    assert "Over seeds" in page
    assert f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" in page


def test_fresh_forgets_the_seeds_of_before(digits, tmp_path):
    from accelerate import Accelerator

    from kdstream.display.progress import Display
    from kdstream.training.job import Job

    settings = {"stream": "decode", "epochs": 1, "loss": "ce"}
    run(recipe_of(digits, tmp_path / "x", **settings, seeds=[0, 5]))
    assert (tmp_path / "x" / "seed5" / "result.json").exists()
    Job(recipe_of(digits, tmp_path / "x", **settings), Accelerator(cpu=True), Display(enabled=False), fresh=True).run()
    assert not list((tmp_path / "x").glob("seed*"))
    assert not (tmp_path / "x" / "results.json").exists()
