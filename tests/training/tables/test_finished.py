"""Finished: trainings are found by what decides them, here and in folders of other people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_tables import finish, write_table

from kdstream.errors import UserError
from kdstream.training.job import each_teacher
from kdstream.training.tables.cells import expand
from kdstream.training.tables.comparison import compare, page
from kdstream.training.tables.finished import Finished, read_done
from kdstream.training.tables.table import load_table
from kdstream.training.tables.work import left_to_do


@pytest.fixture
def cells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {cell.row: cell for cell in expand(load_table(str(write_table(tmp_path, tmp_path / "digits"))))}


def test_last_and_best_epoch_and_top5_is_that_of_the_best_top1(cells):
    finish(cells["kd"].with_seed(4), [70.0, 76.0, 72.0], seconds=9.0)
    (done,) = Finished().of(cells["kd"]).values()
    assert (done.seed, done.epochs, done.seconds) == (4, 3, 9.0)
    assert done.last == {"top1": 72.0, "top5": 82.0}
    assert done.best == {"top1": 76.0, "top5": 86.0}


def test_without_metrics_the_result_tells(cells):
    recipe = cells["kd"].with_seed(0)
    finish(recipe, [70.0, 76.0, 72.0])
    (Path(recipe.out) / "metrics.jsonl").unlink()
    (done,) = Finished().of(cells["kd"]).values()
    assert (done.last, done.best) == ({"top1": 72.0}, {"top1": 76.0})


def test_an_unfinished_training_and_one_of_another_recipe_do_not_count(cells):
    finish(cells["ckd"].with_seed(0), [70.0], folder=cells["kd"].recipe.out)
    finish(cells["kd"].with_seed(1), [70.0])
    (Path(cells["kd"].with_seed(1).out) / "result.json").write_text('{"top1": 7')
    assert Finished().of(cells["kd"]) == {}
    assert Finished().of(cells["search"]) == {}


def test_a_precision_that_is_left_open_may_be_the_launchers(cells):
    recipe = cells["kd"].with_seed(0)
    finish(recipe.model_copy(update={"precision": "bf16"}), [70.0])
    assert list(Finished().of(cells["kd"])) == [0]


def test_a_trained_teacher_is_found_by_how_it_was_trained(cells):
    teaching = cells["kd"].teaching()
    assert Finished().teacher(teaching) is None
    finish(teaching.model_copy(update={"epochs": 9}), [70.0], folder="runs/cells/teachers/a")
    finish(teaching, [80.0], folder="runs/cells/teachers/b")
    assert Finished().teacher(teaching).last["top1"] == 80.0
    assert [done.last["top1"] for done in Finished().of(cells["teacher"]).values()] == [80.0]


def test_a_given_teachers_evaluation_is_that_of_its_cell(tmp_path, monkeypatch):
    from small_tables import TABLE

    monkeypatch.chdir(tmp_path)
    text = TABLE.replace("{teacher: resnet14,", "{teacher: {weights: /somewhere/t.pth},")
    found = {cell.row: cell for cell in expand(load_table(str(write_table(tmp_path, tmp_path / "digits", text))))}
    assert Finished().of(found["teacher"]) == {}
    Path(found["teacher"].recipe.out).mkdir(parents=True)
    (Path(found["teacher"].recipe.out) / "teacher.json").write_text(json.dumps({"top1": 73.31, "top5": 91.42}))
    (done,) = Finished().of(found["teacher"]).values()
    assert done.last == done.best == {"top1": 73.31, "top5": 91.42}


def test_other_peoples_runs_are_added_wherever_their_data_lay(cells, tmp_path):
    for seed, top in enumerate([75.0, 76.0, 74.0]):
        recipe = cells["kd"].with_seed(seed)
        theirs = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": "/their/digits"})})
        finish(theirs, [top], folder=tmp_path / "theirs" / f"deep/{seed}")
    finish(cells["kd"].with_seed(0), [60.0])
    other = cells["kd"].with_seed(9)
    other = other.model_copy(update={"data": other.data.model_copy(update={"path": "/their/cifar100"})})
    finish(other, [1.0], folder=tmp_path / "theirs" / "other")
    finish(cells["teacher"].teaching(), [81.0], folder=tmp_path / "theirs" / "teachers" / "x")
    (tmp_path / "theirs" / "result.json").write_text("{}")
    finished = Finished([tmp_path / "theirs"])
    found = {seed: done.best["top1"] for seed, done in finished.of(cells["kd"]).items()}
    assert found == {0: 60.0, 1: 76.0, 2: 74.0}  # ours for seed 0
    assert finished.teacher(cells["kd"].teaching()).last["top1"] == 81.0
    assert list(Finished().of(cells["kd"])) == [0]
    with pytest.raises(UserError, match=r"^--add nowhere: no such folder$"):
        Finished([Path("nowhere")])


def test_where_the_best_network_counts_it_is_that_of_each_epoch(cells):
    recipe = cells["kd"].with_seed(0)
    finish(recipe, [70.0, 76.0, 72.0])
    path = Path(recipe.out) / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, top in zip(rows, (80.0, 60.0, 71.0), strict=True):
        row |= {"val/peer1/top1": top, "val/peer1/top5": top + 1}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = json.loads((Path(recipe.out) / "result.json").read_text())
    networks = {"student": {"top1": 72.0}, "peer1": {"top1": 71.0}}
    (Path(recipe.out) / "result.json").write_text(json.dumps({**result, "networks": networks}))
    done = read_done(Path(recipe.out), 0, best_network=True)
    assert (done.last, done.best) == ({"top1": 72.0, "top5": 82.0}, {"top1": 80.0, "top5": 81.0})
    assert read_done(Path(recipe.out), 0).best["top1"] == 76.0


def test_of_several_teachers_the_best_is_the_one_when_all_are_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, tmp_path / "digits")
    path = tmp_path / "settings.yaml"
    path.write_text(path.read_text().replace("{train: {loss: ce}}", "{train: {loss: ce}, seeds: 3}"))
    found = {cell.row: cell for cell in expand(load_table("small.yaml"))}
    each = each_teacher(found["kd"].teaching())
    assert [one.seed for one in each] == [0, 1, 2]
    for one, top in zip(each, (70.0, 81.0, 75.0), strict=True):
        assert Finished().of(found["teacher"]) == {}
        finish(one, [top], folder=f"runs/cells/teachers/{one.seed}")
    (done,) = Finished().of(found["teacher"]).values()
    assert (done.seed, done.last["top1"]) == (1, 81.0)
    assert left_to_do([found["teacher"]], 1, [], Finished()) == []
    shown = page(found["kd"].table, compare(list(found.values()), 1, [], Finished()), "x")
    assert dict(shown.facts)["teachers"] == "resnet14: the best of 3 seeds, seed 1, teaches"


def test_a_published_teacher_is_evaluated_and_not_trained(tmp_path, monkeypatch):
    from small_tables import TABLE

    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, tmp_path / "cifar100", TABLE.replace("resnet14", "resnet56"))
    found = {cell.row: cell for cell in expand(load_table("small.yaml"), ["teachers=published"])}
    (task,) = left_to_do([found["teacher"]], 1, ["teachers=published"], Finished())
    assert (task.gives, task.epochs, "--only-teacher" in task.launch) == (None, 0, False)
    assert all(one.needs is None for one in left_to_do([found["kd"]], 1, [], Finished()))
    folder = Path(found["teacher"].recipe.out)
    folder.mkdir(parents=True)
    (folder / "teacher.json").write_text(json.dumps({"top1": 72.3, "top5": 91.0}))
    assert [done.last["top1"] for done in Finished().of(found["teacher"]).values()] == [72.3]
    # Where it could not be had, the one that was trained stands there.
    weights = found["teacher"].recipe.teacher.weights
    (folder / "teacher.json").write_text(json.dumps({"absent": {weights: "gone"}}))
    assert Finished().of(found["teacher"]) == {}
    finish(found["teacher"].teaching(), [70.0], folder="runs/cells/teachers/x")
    assert [done.last["top1"] for done in Finished().of(found["teacher"]).values()] == [70.0]
