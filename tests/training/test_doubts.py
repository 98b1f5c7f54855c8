"""What works and nobody means is said in a line each; what is usual is not."""

from __future__ import annotations

import pytest
from jobs import recipe_of

from kdstream.data.held_out import divided
from kdstream.data.shards import open_shards
from kdstream.training.doubts import doubts, same_images


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 5000}, "batch_size 5000 is more than the "),
        ({"schedule": {"warmup": 2}}, "the warm-up of 2 epochs fills the training of 2: "),
        ({"loss": {"ce": 1, "kd": 0}}, "loss.kd has weight 0: "),
        ({"loss": {"ce": 1, "fitnet": 1}}, None),
        ({"loss": {"ce": 1, "fitnet": {"stages": 2, "epochs": 3}}}, "loss.fitnet prepares the student for 3 epochs"),
        ({"loss": {"ce": 1, "fsp": 1}}, "loss.fsp prepares the student for "),
        ({"loss": "kd", "stream": "decode | teacher | augment(cifar)"}, "stream: the teacher answers before crop_flip"),
        ({"loss": "ce", "stream": "decode | teacher | augment(cifar)"}, None),
        ({"loss": "kd", "stream": "decode | coded | augment(cifar) | teacher"}, None),
    ],
)
def test_a_line_for_each(digits, tmp_path, settings, said):
    found = doubts(recipe_of(digits, tmp_path, **settings), open_shards(digits / "train"))
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


def test_who_keeps_the_teachers_answers_needs_no_advice(digits, tmp_path):
    for cached, advice in (("", True), ("(cache=auto)", False)):
        recipe = recipe_of(digits, tmp_path, loss="kd", stream=f"decode | teacher{cached} | augment(cifar)")
        (found,) = doubts(recipe, open_shards(digits / "train"))
        assert "different views" in found
        assert found.endswith("for the same view, put teacher last") == advice


def test_validation_on_what_was_learnt(digits):
    train, val = open_shards(digits / "train"), open_shards(digits / "val")
    assert same_images(train, val) is None
    assert same_images(*divided(train, 0.1, 0)) is None
    assert same_images(train, open_shards(digits / "train")).startswith("digits/train validates and trains: ")
