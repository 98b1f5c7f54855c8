"""Measures: those of logs and results need no network; the names that tables use are known, one way or the other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_tables import TABLE, finish, write_table

from kdstream.training.tables.cells import expand
from kdstream.training.tables.finished import Finished
from kdstream.training.tables.measures import ELSEWHERE, MEASURES, TOLD, value_of
from kdstream.training.tables.passes import NotHere, Passes, without_bar
from kdstream.training.tables.table import TRAINED, known_tables, load_table


@pytest.fixture
def value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def value(measure, **more):
        text = TABLE.replace("measure: top1", f"measure: {measure}")
        cell = next(
            c for c in expand(load_table(str(write_table(tmp_path, tmp_path / "digits", text)))) if c.row == "kd"
        )
        if not Path(cell.recipe.out).exists():
            finish(cell.recipe, [70.0, 75.0], seconds=12.5)
            path = Path(cell.recipe.out) / "result.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
        (done,) = Finished().of(cell).values()
        return value_of(cell, done, Passes(Finished(), without_bar, look=False))

    return value


def test_seconds_and_parameters_stand_in_the_result(value):
    assert value("seconds", params=1234) == 12.5
    assert value("parameters") == 1234


def test_what_the_teacher_answered_stands_in_the_result(value):
    with pytest.raises(NotHere, match=r"^no teacher answered in its training$"):
        value("teacher_entropy")
    shutil.rmtree("runs")
    assert value("truth_probability", teacher={"gt_probability": [0.75, 0.1]}) == 0.75


def test_what_nothing_measures_says_so(value):
    with pytest.raises(NotHere, match=r"^nothing here measures that$"):
        value("sharpness")
    with pytest.raises(NotHere, match=r"^a setting: the recipes have it$"):
        value("hyperparameter")
    with pytest.raises(NotHere, match=r"^of which corruption is not said: "):
        value("robustness")
    with pytest.raises(NotHere, match=r"^no log of a term ttm or wttm in runs/cells/"):
        value("divergence_curve")
    with pytest.raises(NotHere, match=r"^needs the images: .*digits is not here$"):
        value("entropy")


def test_every_measure_of_a_paper_is_known_and_every_one_of_ours_explained():
    used = set()
    for name in known_tables():
        table = load_table(name)
        attacked = [one.measure.partition(":") for one in table.columns.values() if one.measure]
        assert {row for what, _, row in attacked if what == "transferability"} <= {*table.rows, "teacher"}
        used |= {table.measure, *(head.measure for heads in (table.rows, table.columns) for head in heads.values())}
    derived, set_by_hand = {"difference", "gain", "correlation"}, {"gamma", "beta"}
    known = {*MEASURES, *ELSEWHERE, *TRAINED, "top1_curve", *derived, *set_by_hand, None}
    assert {None if name is None else name.partition(":")[0] for name in used} <= known
    assert set(MEASURES) - {"loss"} <= set(TOLD)
