"""A recipe's streams, completed: where the teacher stands, what evaluation takes over, and one normalisation, last."""

from __future__ import annotations

import pytest

from kdstream.errors import UserError
from kdstream.recipe import make_recipe
from kdstream.training.chains import evaluation_chain, training_chain


def recipe(stream: str, **settings):
    base = {"data": {"path": "nowhere"}, "student": "resnet8", "loss": "ce", "stream": stream}
    return make_recipe({**base, **settings}, "test")


def names(chain) -> list[str]:
    return [stage.name for stage in chain.stages]


@pytest.mark.parametrize(
    ("stream", "taught", "untaught"),
    [
        ("decode", ["decode", "teacher", "normalize"], ["decode", "normalize"]),
        ("decode | normalize", ["decode", "teacher", "normalize"], ["decode", "normalize"]),
        (
            "decode | teacher | kdstream.stream.augment:random_flip",
            ["decode", "teacher", "random_flip", "normalize"],
            ["decode", "random_flip", "normalize"],
        ),
        (
            "decode | coded(hkl) | kdstream.stream.augment:random_flip",
            ["decode", "coded", "random_flip", "teacher", "normalize"],
            ["decode", "random_flip", "normalize"],
        ),
    ],
)
def test_training_ends_with_teacher_and_normalisation(stream, taught, untaught):
    assert names(training_chain(recipe(stream), True)) == taught
    assert names(training_chain(recipe(stream), False)) == untaught


def test_evaluation_takes_the_last_box_of_training_or_its_own_stream():
    assert names(evaluation_chain(recipe("decode | kdstream.stream.augment:random_flip"))) == ["decode", "normalize"]
    boxed = evaluation_chain(
        recipe("decode | kdstream.stream.augment:random_box(size=24) | kdstream.stream.augment:random_box(size=16)")
    )
    assert names(boxed) == ["decode", "center_box", "normalize"]
    assert boxed.stages[1].settings["size"] == 16
    own = recipe(
        "decode | kdstream.stream.augment:random_box(size=24)",
        eval_stream="decode | kdstream.stream.augment:center_box(size=8) | normalize",
    )
    assert names(evaluation_chain(own)) == ["decode", "center_box", "normalize"]


@pytest.mark.parametrize("chain", [lambda r: training_chain(r, True), evaluation_chain])
def test_a_normalisation_of_its_own_is_refused(chain):
    text = "decode | normalize(mean=[0, 0, 0])"
    with pytest.raises(UserError, match=r"^in a recipe, normalize has no settings: set data\.mean and data\.std"):
        chain(recipe(text, eval_stream=text))
