"""Passes: what is told of a finished network is what it answers, kept beside it, and read the next time."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator
from small_tables import TABLE, write_table

from kdstream.analysis.accuracy import accuracy
from kdstream.analysis.asked import load_asked
from kdstream.analysis.one_pass import one_pass
from kdstream.analysis.transfer import transferability
from kdstream.data.shards import open_shards
from kdstream.display.progress import Display
from kdstream.errors import UserError
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
NAMES = (*MORE, "additional_parameters", "robustness:fog", "transferability")
OTHERS = {name: f"transferability:{name}" for name in ("kd", "ckd")}
COLUMNS = "".join(
    f"  {key}: {COLUMN}, measure: '{name}'}}\n"
    for key, name in [*((name.partition(":")[0], name) for name in NAMES), *OTHERS.items()]
)
TEXT = TABLE.replace("rows:", f"{COLUMNS}rows:")
TEXT = TEXT[: TEXT.index("values: |")].replace("place: table", "place: figure")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """A folder in which the teacher and the coded student of a small table are finished."""
    here = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        path = write_table(here, digits, TEXT)
        settings = here / "settings.yaml"
        settings.write_text(settings.read_text().replace("epochs: 1", "epochs: 6").replace("size: 120", "size: 40"))
        cell = next(cell for cell in expand(load_table(str(path))) if cell.row == "ckd" and cell.measure == "top1")
        Job(cell.recipe, Accelerator(cpu=True), Display(enabled=False)).run()
    return here


@pytest.fixture
def cells(trained, tmp_path, monkeypatch):
    """(row, column) -> cell, in a copy of that folder."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return {(cell.row, cell.column): cell for cell in expand(load_table("small.yaml"))}


@pytest.fixture
def fogs(tmp_path, digits):
    """Corrupted images: of four severities the validation split, of the last the training split."""
    folder, info = tmp_path / "fogs", json.loads((digits / "dataset.json").read_text())
    folder.mkdir()
    splits = {}
    for n in range(1, 6):
        old = "train" if n == 5 else "val"
        for path in digits.glob(f"{old}-*.tar"):
            shutil.copy(path, folder / path.name.replace(old, f"fog_{n}", 1))
        splits[f"fog_{n}"] = json.loads(json.dumps(info["splits"][old]).replace(f'"{old}', f'"fog_{n}'))
    (folder / "dataset.json").write_text(json.dumps({**info, "splits": splits}))
    return folder


def value(cells, row, column, **settings):
    finished = Finished()
    cell = cells[row, column]
    (done,) = finished.of(cell).values()
    return value_of(cell, done, Passes(finished, without_bar, cpu=True, **settings), list(cells.values()))


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


def test_corrupted_images_are_those_that_are_named_or_are_made_here(cells, digits, fogs, monkeypatch):
    (folder,) = (done.folder for done in Finished().of(cells["ckd", "entropy"]).values())
    network = load_student(folder)
    val, train = (accuracy(network, open_shards(digits / name), network.mean, network.std) for name in ("val", "train"))
    assert val.top1 != train.top1
    assert value(cells, "ckd", "robustness", corrupted=fogs) == pytest.approx((4 * val.top1 + train.top1) / 5)
    assert value(cells, "ckd", "robustness", corrupted=fogs, look=False) > 0
    # Without them they are made, which needs a library and images that are not too small for it.
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(NotHere, match=r"^needs images of fog: kdstream shards cifar100c:DIR shards/cifar100c"):
        value(cells, "ckd", "robustness")
    monkeypatch.setattr(module, "library", lambda: lambda image, name, n: image)
    with pytest.raises(NotHere, match=r"^images of 16 x 16 pixels: corruptions are made from 32 on"):
        value(cells, "ckd", "robustness")
    monkeypatch.setattr("kdstream.analysis.robustness.SMALLEST", 16)
    assert value(cells, "ckd", "robustness") == pytest.approx(val.top1)  # a library that changes nothing
    info = json.loads((fogs / "dataset.json").read_text())
    del info["splits"]["fog_4"]
    (fogs / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(NotHere, match=r"fogs lacks fog_4: kdstream shards cifar100c:DIR makes it$"):
        value(cells, "ckd", "robustness", corrupted=fogs)
    with pytest.raises(UserError, match=r"^cannot read nowhere/dataset\.json"):
        value(cells, "ckd", "robustness", corrupted=Path("nowhere"))


def test_an_attack_is_on_the_teacher_or_on_a_rows_network(cells, digits, monkeypatch):
    short = functools.partial(transferability, steps=6)  # a third of the time
    monkeypatch.setattr(module, "transferability", short)
    (folder,) = (done.folder for done in Finished().of(cells["ckd", "entropy"]).values())
    (teachers,) = (done.folder for done in Finished().of(cells["teacher", "entropy"]).values())
    val = open_shards(digits / "val")
    asked = [load_asked("", str(place), val, "cpu") for place in (teachers, folder)]
    shares = short(["teacher", "student"], asked, one_pass(val)).shares
    assert shares[1][0] != shares[1][1]
    assert value(cells, "ckd", "transferability") == pytest.approx(shares[1][0])
    assert value(cells, "ckd", "ckd") == pytest.approx(shares[1][1])
    # One attack serves all networks of its column that are there: the teacher's own row is measured by now.
    assert value(cells, "teacher", "ckd", look=False) == pytest.approx(shares[0][1])
    with pytest.raises(NotHere, match=r"^needs kd by seed 0, which is attacked$"):
        value(cells, "ckd", "kd")


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
    chosen = [
        cell for (row, column), cell in cells.items() if row == "ckd" and column not in ("ckd", "transferability")
    ]
    found = compare(chosen, 1, [], finished, Passes(finished, without_bar, cpu=True))
    plain = {cell["column"]: cell for cell in as_json(chosen[0].table, found)["cells"]}
    assert plain["entropy"]["last"]["mean"] == value(cells, "ckd", "entropy")
    assert plain["entropy"]["best"] is None
    assert plain["kd"]["not_measured"] == "the attack is on kd, which nothing in the table trains"
    assert {name.partition(":")[0] for name in MORE} <= set(MEASURES)
