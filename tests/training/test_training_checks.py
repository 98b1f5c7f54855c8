"""Whether a recipe is possible, by the recipe and its data alone."""

from __future__ import annotations

import pytest
from jobs import recipe_of

from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.training.checks import agree_on_classes, asks_teacher, check, lacking_classes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "kd"}, r"recipe job: the loss \(kd\) needs a teacher: add teacher: to the recipe"),
        ({"loss": {"fsp": 1}, "teacher": "resnet8"}, r"the loss \(fsp\) only prepares the student: add a term"),
        ({"student": "resnet9"}, r"recipe job: .*resnet9"),
        ({"student": {"model": "wrn_16_2", "options": {"depht": 3}}}, r"recipe job: .*depht"),
        ({"stream": "decode | agument(cifar)"}, r"recipe job: .*agument"),
        ({"assistants": ["resnet14"]}, r"the first of the assistants needs a teacher"),
    ],
)
def test_what_is_not_possible(digits, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        check(recipe_of(digits, tmp_path, **settings))


def test_what_asks_a_teacher(digits, tmp_path):
    assert not asks_teacher(recipe_of(digits, tmp_path, loss={"ce": 1}))
    assert asks_teacher(recipe_of(digits, tmp_path, loss={"ce": 1, "at": 100}))


def test_classes_of_both_splits(digits, tmp_path):
    data = recipe_of(digits, tmp_path, data={"path": str(digits), "num_classes": 12}).data
    train, val = open_shards(digits / "train"), open_shards(digits / "val")
    assert lacking_classes(train, val) == []
    agree_on_classes(data, "val", train, val)
    assert train.num_classes == val.num_classes == 12
    assert lacking_classes(train, val) == [
        f"digits/{split} has samples of 10 of 12 classes, none of '10', '11'" for split in ("train", "val")
    ]
