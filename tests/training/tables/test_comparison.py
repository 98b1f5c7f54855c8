"""Comparison: means, spread, differences and marks are those of hand, of results that lie where trainings put them."""

from __future__ import annotations

import json
import math

import pytest
from scipy import stats
from small_tables import TABLE, finish, write_table

from kdstream.analysis.spread import Spread
from kdstream.display.table_page import to_html, to_markdown
from kdstream.training.tables.cells import expand
from kdstream.training.tables.comparison import as_json, compare, page
from kdstream.training.tables.finished import Finished
from kdstream.training.tables.table import load_table

FIVE = TABLE.replace("runs_averaged: 2", "runs_averaged: 5")


@pytest.fixture
def cells(tmp_path, monkeypatch):
    def cells(text=FIVE):
        monkeypatch.chdir(tmp_path)
        table = load_table(str(write_table(tmp_path, tmp_path / "digits", text)))
        return {cell.row: cell for cell in expand(table)}

    return cells


def compared(cells, seeds=5, added=()):
    found = compare(list(cells.values()), seeds, [], Finished(added))
    return {one.cell.row: one for one in found}


TOPS = {0: [70.0, 75.0, 72.0], 1: [70.0, 76.0, 74.0], 2: [70.0, 74.0, 70.0]}


def test_ours_stands_beside_the_printed_value(cells):
    found = cells()
    for seed, tops in TOPS.items():
        finish(found["kd"].with_seed(seed), tops)
    one = compared(found)["kd"]
    assert (one.last.mean, one.last.std, one.best.mean, one.best.std) == (72.0, 2.0, 75.0, 1.0)
    assert one.difference == pytest.approx(75.0 - 73.08)
    expected = stats.ttest_ind_from_stats(75.0, 1.0, 3, 73.08, 0.2, 5, equal_var=False).pvalue
    assert one.probability == pytest.approx(expected, rel=1e-3)
    assert 0.05 < expected < 0.1
    assert not one.marked
    assert (one.seeds_lacking, sorted(one.done)) == (2, [0, 1, 2])


def test_the_last_epoch_is_compared_where_the_paper_prints_it_and_more_seeds_tell_more(cells):
    found = cells(FIVE.replace("printed: best", "printed: last"))
    for seed in range(5):
        finish(found["kd"].with_seed(seed), [75.0, 70.0 + seed / 10])
    one = compared(found)["kd"]
    assert one.difference == pytest.approx(70.2 - 73.08)
    assert one.marked
    assert one.seeds_lacking == 0


def test_without_a_printed_spread_the_papers_runs_vary_as_ours(cells):
    found = cells()
    for seed, tops in TOPS.items():
        finish(found["ckd"].with_seed(seed), tops)
    one = compared(found)["ckd"]
    error = math.sqrt(1 / 3 + 1 / 5)
    assert one.probability == pytest.approx(2 * stats.t.sf(1.0 / error, 2))
    single = compared(found, seeds=1)["student"]
    assert (single.last, single.difference, single.probability, single.seeds_lacking) == (None, None, None, 1)


def test_a_single_seed_marks_nothing(cells):
    found = cells()
    finish(found["kd"].with_seed(0), [10.0])
    one = compared(found)["kd"]
    assert (one.last.std, one.probability, one.marked) == (None, None, False)
    assert one.difference == pytest.approx(10 - 73.08)


def test_what_is_missing_says_what_it_costs(cells):
    found = cells()
    finish(found["teacher"].teaching(), [80.0], folder="runs/cells/teachers/digits-resnet14-x", seconds=7.0)
    finish(found["kd"].with_seed(0), [70.0], seconds=30.0)
    by_row = compared(found)
    assert by_row["teacher"].best.mean == 80.0
    assert (by_row["teacher"].seeds_lacking, by_row["teacher"].epochs_lacking) == (0, 0)
    assert (by_row["kd"].seeds_lacking, by_row["kd"].epochs_lacking) == (4, 4)
    assert by_row["kd"].seconds_lacking == pytest.approx(120.0)  # four epochs of 30 s
    assert (by_row["ckd"].seeds_lacking, by_row["ckd"].seconds_lacking) == (5, None)  # no such pair is done
    shown = dict(page(found["kd"].table, list(by_row.values()), "x").rows)
    assert shown["KD"][0].missing == "lacks 4: 4 epochs, 2:00"
    assert shown["CKD"][0].missing == "lacks 5: 5 epochs"
    assert shown["Searched"][0].missing == "quoted"
    assert shown["Teacher"][0].missing == ""


def test_the_report_says_all_of_it(cells):
    found = cells()
    for seed, tops in TOPS.items():
        finish(found["kd"].with_seed(seed), tops)
    by_row = compared(found)
    table = found["kd"].table
    assert "ours" not in dict(page(table, list(by_row.values()), "x").facts)
    other = dict(page(table, list(by_row.values()), "x", ["epochs=2", "data.path=mine"]).facts)["ours"]
    assert other == "not with the paper's settings: epochs=2, data.path=mine"
    shown = page(table, list(by_row.values()), "kdstream table small")
    for text in (to_html(shown), to_markdown(shown)):
        for said in ("73.08±0.2", "last 72.00 ± 2.00", "best 75.00 ± 1.00", "+1.92, n = 3", "lacks 2: 3 epochs"):
            assert said in text
        assert "hardly so" in text
        assert "from another paper" in text
    plain = json.loads(json.dumps(as_json(table, list(by_row.values()))))
    (kd,) = [cell for cell in plain["cells"] if cell["row"] == "kd"]
    assert kd["printed"] == {"text": "73.08±0.2", "value": 73.08, "std": 0.2}
    assert kd["last"] == {"mean": 72.0, "std": 2.0, "seeds": 3}
    assert kd["seeds"] == [0, 1, 2]
    assert plain["suspect"] == [{"row": "kd", "column": "resnet14-resnet8", "says": "hardly so"}]


def test_what_is_made_of_other_cells_is_so_seed_by_seed(cells):
    made = FIVE.replace("  search: {label: Searched, quoted: true,", "  search: {label: Gain, less: [ckd, kd],")
    made = made.replace("search   n/a", "search   1.5\n  mean     .").replace(
        "\nvalues:", "\n  mean: {mean: [search, kd]}\nvalues:"
    )
    found = cells(made)
    for seed, tops in TOPS.items():
        finish(found["kd"].with_seed(seed), tops)
        if seed:
            finish(found["ckd"].with_seed(seed), [tops[0] + 10 * seed])
    by_row = compared(found)
    gain = by_row["search"]
    assert gain.last == Spread.of([80.0 - 74.0, 90.0 - 70.0])  # seeds 1 and 2
    assert gain.best == Spread.of([80.0 - 76.0, 90.0 - 74.0])
    assert gain.difference == pytest.approx(10.0 - 1.5)
    assert by_row["mean"].last == Spread.of([(6.0 + 74.0) / 2, (20.0 + 70.0) / 2])
    shown = dict(page(found["kd"].table, list(by_row.values()), "x").rows)
    assert (shown["Gain"][0].missing, shown["Gain"][0].seeds) == ("", 2)


def test_what_is_no_accuracy_stands_with_its_reason_and_its_decimals(cells):
    found = cells(FIVE.replace("measure: top1", "measure: seconds").replace("73.08±0.2", "0.2453"))
    finish(found["kd"].with_seed(0), [70.0], seconds=0.25)
    by_row = compared(found)
    shown = dict(page(found["kd"].table, list(by_row.values()), "x").rows)["KD"][0]
    assert shown.ours == ["ours 0.2500", "+0.0047, n = 1"]
    found = cells(FIVE.replace("measure: top1", "measure: entropy"))
    shown = dict(page(found["kd"].table, list(compared(found).values()), "x").rows)["KD"][0]
    assert (
        shown.missing
        == "lacks 4: 5 epochs, entropy: needs the images: " + f"{found['kd'].recipe.data.path} is not here"
    )
