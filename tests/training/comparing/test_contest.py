"""The trainings of a comparison: folders by what decides them, what is left, rehearsals, and a pass that is kept."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator
from jobs import run

from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.recipe_file import load_recipe
from kdstream.training.comparing.contest import EVALUATION, Contest, evaluated, try_all
from kdstream.training.comparing.methods import find_methods
from kdstream.training.comparing.setting import completed, read_setting
from kdstream.training.job import teacher_recipe

STREAM = "stream=decode | augment(cifar, pad=1, flip=false)"
CPU = torch.device("cpu")


def setting(digits, *overrides):
    given = [STREAM, "epochs=1", "batch_size=120", "workers=0", "schedule={name: constant}", *overrides]
    return completed(read_setting(str(digits), "resnet14", "resnet8", given, 50), (16, 16))


def methods(*names):
    return {method.name: method for method in find_methods(names, "resnet14", "resnet8", False)}


def write_result(training, shards, data=None):
    folder = training.recipe.folder()
    folder.mkdir(parents=True)
    fingerprint = f"{training.recipe.fingerprint()}-{data or shards.fingerprint[:16]}"
    (folder / "result.json").write_text(json.dumps({"fingerprint": fingerprint, "top1": 50.0}))


def test_what_is_left_is_each_once_teachers_first_and_changed_settings_are_other_trainings(digits, tmp_path):
    shards = open_shards(digits / "train")
    contest, found = Contest(tmp_path, shards), methods("ckd")
    some = [contest.training(method, setting(digits), seed) for seed in (0, 1) for method in found.values()]
    tasks = contest.left(some)
    assert [task.name for task in tasks][:3] == ["teacher resnet14", "labels only, seed 0", "kd, seed 0"]
    assert len(tasks) == 7
    teacher = tasks[0].gives
    assert [task.needs for task in tasks[1:]] == [None, teacher, teacher] * 2
    assert "--only-teacher" in tasks[0].launch
    write_result(some[0], shards)
    assert len(contest.left(some)) == 6
    other = contest.training(found["labels only"], setting(digits, "epochs=2"), 0)
    assert not contest.done(other)
    assert other.recipe.folder() != some[0].recipe.folder()
    # The files are those recipes, whole, and of other files' fingerprints nothing is lost.
    contest.write_recipes(tasks, some)
    for task in tasks[1:]:
        again = load_recipe(task.launch[1], task.launch[2:])
        assert (again.fingerprint(), again.folder()) == (task.recipe.fingerprint(), task.recipe.folder())
    assert teacher_recipe(load_recipe(tasks[0].launch[1])).fingerprint() == teacher


def test_a_training_of_other_images_is_not_taken_for_one_of_these(digits, tmp_path):
    shards = open_shards(digits / "train")
    contest = Contest(tmp_path, shards)
    one = contest.training(methods()["kd"], setting(digits), 0)
    write_result(one, shards, "0" * 16)
    with pytest.raises(UserError, match=r"is of other images.*--out"):
        contest.done(one)


def test_access_to_weights_is_in_no_file(digits, tmp_path):
    address = "https://example.org/teacher.pth?token=secret"
    given = read_setting(str(digits), address, "resnet8", [STREAM], 50)
    contest = Contest(tmp_path, open_shards(digits / "train"))
    one = contest.training(methods()["kd"], completed(given, (16, 16)), 0)
    (task,) = contest.left([one])
    contest.write_recipes([task], [one])
    assert not any("secret" in path.read_text() for path in tmp_path.rglob("*.yaml"))
    assert load_recipe(task.launch[1], task.launch[2:]).teacher.weights == address


def test_what_is_impossible_is_found_with_the_methods_name(digits):
    splits = [open_shards(digits / split) for split in ("train", "val")]
    shared, found = setting(digits), methods("vitkd")
    said = []
    recipes = {name: shared.recipe(method).model_copy(update={"name": name}) for name, method in found.items()}
    with pytest.raises(UserError, match="vitkd"):
        try_all(recipes, *splits, Accelerator(cpu=True), said.append)
    assert said == ["trying labels only", "trying kd", "trying vitkd"]


def test_a_pass_over_the_validation_split_is_kept_until_the_training_is_another(digits, tmp_path):
    val = open_shards(digits / "val")
    contest = Contest(tmp_path, open_shards(digits / "train"))
    one = contest.training(methods()["labels only"], setting(digits), 0)
    (result,) = run(one.recipe)
    assert contest.done(one)
    counted = []
    found = evaluated(one, val, CPU, counted.append)
    assert found["top1"] == pytest.approx(result["top1"])
    assert found["result"]["seconds"] == result["seconds"]
    assert 0 <= found["calibration_error"] <= 100
    assert sum(counted) == len(val) == found["samples"]
    path = one.recipe.folder() / EVALUATION
    path.write_text(json.dumps({**json.loads(path.read_text()), "top1": 1.0}))
    assert evaluated(one, val, CPU, counted.append)["top1"] == 1.0, "measured once"
    stored = json.loads((one.recipe.folder() / "result.json").read_text())
    (one.recipe.folder() / "result.json").write_text(json.dumps({**stored, "fingerprint": "another"}))
    assert evaluated(one, val, CPU, counted.append)["top1"] == found["top1"]
