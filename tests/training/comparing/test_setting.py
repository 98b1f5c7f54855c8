"""The setting that all methods share: from a folder or a recipe, completed by what the images are, with one teacher."""

from __future__ import annotations

import pytest
import yaml

from kdstream.errors import UserError
from kdstream.stream.language import parse_calls
from kdstream.training.comparing.methods import find_methods
from kdstream.training.comparing.setting import completed, need_place, need_terms, read_setting
from kdstream.training.job import teacher_recipe


def setting(*overrides, place="shards/x", teacher="resnet14", student="resnet8", delta=5, size=(32, 32)):
    return completed(read_setting(place, teacher, student, overrides, delta), size)


def recipes(found, *names):
    methods = find_methods(names, found.teacher, found.student, found.photographs)
    return {method.name: found.recipe(method) for method in methods}


def test_small_images_and_photographs_get_their_own_augmentation_and_it_is_said():
    small, digits = setting(), setting(size=(16, 16))
    assert small.settings["stream"] == "decode | augment(cifar, pad=4)"
    assert digits.settings["stream"] == "decode | augment(cifar, pad=2)"
    for found, side in ((setting(size=None), 224), (setting(size=(64, 96)), 64), (setting(size=(500, 500)), 224)):
        assert found.settings["stream"] == f"decode | augment(inception, {side})"
        assert found.photographs
        assert any("augment(inception" in note for note in found.notes)
    assert any("epochs=120" in note for note in small.notes)
    own = setting(
        "stream=decode | augment(cifar, flip=false)", "epochs=3", "schedule={name: constant}", "optimizer.lr=1"
    )
    assert own.notes == ()
    assert recipes(own)["kd"].epochs == 3


def test_the_coded_form_compresses_before_the_augmentation_and_shares_the_teacher():
    found = recipes(setting("epochs=7", "seed=3"), "ckd", "wttm")
    coded = "decode | coded(hkl, delta=5, plan=auto) | augment(cifar, pad=4)"
    assert parse_calls(found["ckd"].stream) == parse_calls(coded)
    assert found["labels only"].teacher is None
    # Whatever a method changes of its own, its teacher is the same.
    one = setting("epochs=7", "seed=3")
    kd = next(method for method in find_methods([], "resnet14", "resnet8", False) if method.name == "kd")
    changed = one.recipe(kd, ("optimizer.lr=0.5", "epochs=9", "loss.kd.temperature=12"))
    assert (changed.epochs, changed.optimizer.lr, changed.loss["kd"]["temperature"]) == (9, 0.5, 12)
    teachers = {teacher_recipe(recipe).fingerprint() for recipe in (found["kd"], found["ckd"], found["wttm"], changed)}
    assert len(teachers) == 1
    assert (teacher_recipe(changed).epochs, teacher_recipe(changed).seed) == (7, 3)
    assert teacher_recipe(changed.model_copy(update={"seed": 4})).fingerprint() in teachers


def test_a_teacher_of_ones_own_training_and_one_that_is_given():
    trained = recipes(setting("epochs=7", "teacher.train.epochs=30"))["kd"]
    assert teacher_recipe(trained).epochs == 30
    assert teacher_recipe(recipes(setting(teacher="runs/mine"))["kd"]) is None
    assert (
        recipes(setting(teacher="published:resnet56@cifar100"))["kd"].teacher.weights == "published:resnet56@cifar100"
    )


def test_settings_of_a_term_are_for_the_methods_that_have_it():
    found = setting("loss.kd.temperature=9", "loss.wttm.gamma=0.7")
    made = recipes(found, "ckd", "wttm", "at")
    assert made["kd"].loss["kd"]["temperature"] == made["ckd"].loss["kd"]["temperature"] == 9
    assert made["wttm"].loss["wttm"]["gamma"] == 0.7
    assert "kd" not in made["at"].loss
    methods = find_methods(["at"], "resnet14", "resnet8", False)
    with pytest.raises(UserError, match="no method with wttm"):
        need_terms(found, methods)


def test_a_recipe_gives_all_but_the_losses(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "data": {"path": "shards/mine"},
                "teacher": "resnet20",
                "student": "resnet8",
                "stream": "decode | coded(fixed(50)) | augment(cifar, pad=1)",
                "loss": {"ce": 1, "kd": 1},
                "epochs": 4,
                "runs": {"a": {"loss": "ce"}},
            }
        )
    )
    found = completed(read_setting(str(path), None, "resnet14", ["epochs=5"], 5), (32, 32))
    made = recipes(found, "ckd")
    assert (found.name, found.teacher, found.student) == ("mine", "resnet20", "resnet14")
    assert parse_calls(made["ckd"].stream) == parse_calls("decode | coded(fixed(50)) | augment(cifar, pad=1)")
    assert parse_calls(made["kd"].stream) == parse_calls("decode | augment(cifar, pad=1)")
    assert (made["kd"].epochs, made["kd"].data.path, made["kd"].runs) == (5, "shards/mine", {})
    assert any("loss and runs of mine left out" in note for note in found.notes)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"teacher": None}, "which teacher.*--teacher resnet34"),
        ({"student": None}, "which student"),
        ({"overrides": ["loss=kd"]}, "the methods are the losses"),
        ({"overrides": ["seeds=3"]}, "--seeds"),
        ({"overrides": ["assistants=[resnet20]"]}, "not for a comparison"),
        ({"place": "ckd/table5"}, "kdstream table ckd/table5"),
        ({"place": "nothing.yaml"}, "no recipe 'nothing.yaml'"),
    ],
)
def test_mistakes(given, says):
    given = {"place": "shards/x", "teacher": "resnet14", "student": "resnet8", "overrides": [], "delta": 5, **given}
    with pytest.raises(UserError, match=says):
        read_setting(**given)


def test_a_folder_that_is_not_there():
    with pytest.raises(UserError, match=r"no folder of shards, and no recipe.*did you mean 'quickstart'"):
        need_place(read_setting("quickstrt", "resnet14", "resnet8", [], 5), "quickstrt")
    need_place(read_setting("shards/x", "resnet14", "resnet8", ["data.source=digits"], 5), "shards/x")
