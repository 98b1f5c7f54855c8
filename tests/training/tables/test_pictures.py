"""Pictures: a figure's curves and histograms are drawn of what is finished, one chart a column."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tables import TABLE, finish, write_table

from kdstream.display.table_page import to_html
from kdstream.training.tables.cells import expand
from kdstream.training.tables.comparison import compare, page
from kdstream.training.tables.finished import Finished
from kdstream.training.tables.pictures import pictures
from kdstream.training.tables.table import load_table


class Fixed:
    """Passes that find the same of every network."""

    look = True

    def answers(self, cell, done):
        return {"entropy": 0.5, "entropy_histogram": [3, 1, 0, 0], "logit_histogram": [0.02] * 50}

    def classes(self, cell):
        return list("0123456789")


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def drawn(measure):
        text = TABLE.replace("measure: top1", f"measure: {measure}")
        cells = expand(load_table(str(write_table(tmp_path, tmp_path / "digits", text))))
        for cell in cells:
            if cell.row in ("kd", "ckd") and not Path(cell.recipe.out).exists():
                finish(cell.recipe, [70.0, 76.0, 72.0])
        compared = compare(cells, 1, [], Finished(), Fixed())
        return cells[0].table, compared, pictures(cells[0].table, compared, Fixed())

    return drawn


def test_curves_are_of_the_log_and_stand_on_the_page(drawn):
    table, compared, charts = drawn("top1_curve")
    (chart,) = charts  # of training accuracy there is no log here
    assert chart.title == "Validation top-1, %: resnet14-resnet8"
    assert [look.name for look in chart.looks] == ["KD", "CKD"]
    shown = page(table, compared, "x")
    assert dict(shown.rows)["KD"][0].best == "76.00"
    shown.charts.extend(charts)
    html = to_html(shown)
    assert html.count("<svg role") == 1
    assert "var(--c0)" in html
    assert "--c0:" in html


@pytest.mark.parametrize(
    ("measure", "title"), [("entropy_histogram", "% of images"), ("logit_histogram", "% of logits")]
)
def test_histograms_are_of_the_answers(drawn, measure, title):
    _, compared, (chart,) = drawn(measure)
    assert chart.title == f"{title}: resnet14-resnet8"
    assert {one.cell.row: one.last and one.last.mean for one in compared}["kd"] == 0.5


def test_what_is_no_picture_draws_none(drawn):
    assert drawn("top1")[2] == []
