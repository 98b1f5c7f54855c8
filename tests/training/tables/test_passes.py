"""Passes: what is told of a finished network is what it answers, kept beside it, and read the next time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator
from small_tables import TABLE, write_table

from kdstream.analysis.accuracy import accuracy
from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.models.export import load_student
from kdstream.training.job import Job
from kdstream.training.tables import passes as module
from kdstream.training.tables.cells import expand
from kdstream.training.tables.comparison import as_json, compare
from kdstream.training.tables.finished import Finished
from kdstream.training.tables.measures import MEASURES, value_of
from kdstream.training.tables.passes import NotHere, Passes, without_bar
from kdstream.training.tables.table import load_table

MORE = ("entropy", "ece", "pearson", "spearman", "logit_difference", "class_top1:3", "lowest_class_top1", "parameters")
COLUMN = "{teacher: resnet14, student: resnet8, optimizer: {lr: 0.01}"
NAMES = (*MORE, "additional_parameters", "robustness")
COLUMNS = "".join(f"  {name.partition(':')[0]}: {COLUMN}, measure: '{name}'}}\n" for name in NAMES)
TEXT = TABLE.replace("rows:", f"{COLUMNS}rows:")
TEXT = TEXT[: TEXT.index("values: |")].replace("place: table", "place: figure")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A folder in which the teacher and the coded student of a small table are finished."""
    here = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        path = write_table(here, digits, TEXT)
        cell = next(cell for cell in expand(load_table(str(path))) if cell.row == "ckd" and cell.measure == "top1")
        Job(cell.recipe, Accelerator(cpu=True), Display(enabled=False)).run()
    return here


@pytest.fixture
def cells(trained, tmp_path, monkeypatch):
    """(row, column) -> cell, in a copy of that folder."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return {(cell.row, cell.column): cell for cell in expand(load_table("small.yaml"))}


def value(cells, row, column, **settings):
    finished = Finished()
    cell = cells[row, column]
    (done,) = finished.of(cell).values()
    return value_of(cell, done, Passes(finished, without_bar, cpu=True, **settings))


def test_values_are_those_of_the_exported_network_over_the_validation_split(cells, digits):
    folder = Path(next(iter(Finished().of(cells["ckd", "entropy"]).values())).folder)
    network, val = load_student(folder), open_shards(digits / "val")
    own = accuracy(network, val, network.mean, network.std)
    assert value(cells, "ckd", "ece") == pytest.approx(own.calibration_error)
    assert value(cells, "ckd", "class_top1") == own.per_class[3]
    assert value(cells, "ckd", "lowest_class_top1") == min(own.per_class)
    assert value(cells, "ckd", "parameters") == sum(p.numel() for p in network.parameters())
    assert value(cells, "ckd", "additional_parameters") == 0
    assert -1 <= value(cells, "ckd", "pearson") <= 1
    assert value(cells, "teacher", "entropy") != value(cells, "ckd", "entropy")
    with pytest.raises(NotHere, match=r"^pearson: a pass over these answers does not tell$"):
        value(cells, "teacher", "pearson")
    with pytest.raises(NotHere, match=r"^needs corrupted images"):
        value(cells, "ckd", "robustness")


def test_what_was_measured_is_kept_beside_the_run_and_read_the_next_time(cells, monkeypatch):
    with pytest.raises(NotHere, match=r"^not measured yet$"):
        value(cells, "ckd", "entropy", look=False)
    first = value(cells, "ckd", "entropy")
    (kept,) = Path("runs/cells").glob("*/measured.json")

    def look_at(*arguments, **settings):
        raise AssertionError("looked again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "look_at", look_at)
        assert value(cells, "ckd", "entropy") == value(cells, "ckd", "entropy", look=False) == first
        # Not so what somebody has changed, nor what was found of other weights.
        text = kept.read_text()
        kept.write_text(text.replace('"samples": 240', '"samples": 241'))
        with pytest.raises(AssertionError, match="looked again"):
            value(cells, "ckd", "entropy")
        kept.write_text(text)
        about = kept.parent / "student.json"
        about.write_text(json.dumps({**json.loads(about.read_text()), "weights_sha256": 64 * "0"}))
        with pytest.raises(NotHere, match=r"is not the file that student\.json describes"):
            value(cells, "ckd", "entropy")


def test_what_lacks_is_said(cells):
    (done,) = Finished().of(cells["ckd", "entropy"]).values()
    (done.folder / "student.safetensors").unlink()
    with pytest.raises(NotHere, match=f"^no weights in {done.folder}$"):
        value(cells, "ckd", "entropy")
    text = Path("settings.yaml").read_text()
    Path("settings.yaml").write_text(text.replace("digits", "nowhere"))
    moved = expand(load_table("small.yaml"))
    one = next(cell for cell in moved if (cell.row, cell.measure) == ("ckd", "entropy"))
    with pytest.raises(NotHere, match=r"^needs the images: .*nowhere is not here$"):
        value_of(one, done, Passes(Finished(), without_bar, cpu=True))


def test_a_comparison_has_them_and_the_reasons(cells):
    finished = Finished()
    chosen = [cell for (row, _), cell in cells.items() if row == "ckd"]
    found = compare(chosen, 1, [], finished, Passes(finished, without_bar, cpu=True))
    plain = {cell["column"]: cell for cell in as_json(chosen[0].table, found)["cells"]}
    assert plain["entropy"]["last"]["mean"] == value(cells, "ckd", "entropy")
    assert plain["entropy"]["best"] is None
    assert plain["robustness"]["not_measured"].startswith("needs corrupted images")
    assert {name.partition(":")[0] for name in MORE} <= set(MEASURES)
