"""Timing: an epoch's time is measured where the data is there, and nothing is written."""

from __future__ import annotations

from accelerate import Accelerator
from small_tables import write_table

from kdstream.training.tables.cells import expand
from kdstream.training.tables.table import load_table
from kdstream.training.tables.timing import data_is_there, seconds_per_epoch


def test_an_epoch_is_timed_and_nothing_is_written(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = load_table(str(write_table(tmp_path, digits)))
    cells = {cell.row: cell for cell in expand(table)}
    before = {*tmp_path.rglob("*"), *digits.rglob("*")}
    recipe = cells["ckd"].recipe.model_copy(update={"stream": "decode | coded(fixed(50), plan=auto)"})
    assert data_is_there(recipe)
    assert 0 < seconds_per_epoch(recipe, Accelerator(cpu=True), steps=3) < 600
    assert {*tmp_path.rglob("*"), *digits.rglob("*")} == before


def test_data_that_is_not_there_is_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = load_table(str(write_table(tmp_path, tmp_path / "nowhere")))
    for cell in expand(table, ["data.source=digits"]):
        assert cell.recipe is None or not data_is_there(cell.recipe)
    (tmp_path / "nowhere").mkdir()
    assert not data_is_there(expand(table)[1].recipe)
