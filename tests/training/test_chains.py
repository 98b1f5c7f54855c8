"""What the user left out of a recipe's streams is added, and stages are known by what they are, not by their names."""

from __future__ import annotations

import pytest
from jobs import recipe_of, run

import kdstream as kd
from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.recipe import make_recipe
from kdstream.training.chains import evaluation_chain, training_chain
from kdstream.training.checks import check

MINE = """
import torch
import kdstream as kd

def plain(batches, by=None, size=None):
    for batch in batches:
        yield batch

def named(name):
    plain_again = type(plain)(plain.__code__, plain.__globals__, name, plain.__defaults__)
    plain_again.__qualname__ = name
    return kd.batch_stage(plain_again)

teacher, normalize, coded, random_box = map(named, ("teacher", "normalize", "coded", "random_box"))

@kd.stage
def decode(samples):
    for sample in samples:
        yield {**sample, "image": torch.zeros(3, 16, 16, dtype=torch.uint8), "label": int(sample["cls"])}
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's whose stages are called as ours are."""
    (tmp_path / "called_as_ours.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    return "called_as_ours"


def roles(chain):
    return [(step.name, step.role) for step in chain.stages]


OWN = [("teacher", None), ("normalize", None), ("coded", None), ("random_box", None)]
ENDS = [("teacher", "teacher"), ("normalize", "normalize")]


def test_what_is_left_out_is_added():
    def chains(stream, **settings):
        recipe = recipe_of("data", "nowhere", stream=stream, **settings)
        return str(training_chain(recipe, True)), str(training_chain(recipe, False)), str(evaluation_chain(recipe))

    whole = "decode | augment(cifar) | coded(hkl) | teacher | normalize"
    views = "decode() | crop_flip(pad=4, mode='zeros', flip=True)"
    for stream in (whole, whole.replace(" | normalize", ""), whole.replace(" | teacher | normalize", "")):
        taught, alone, evaluated = chains(stream)
        assert taught.startswith(f"{views} | ")
        assert taught.endswith(" | teacher() | normalize()")
        assert alone == f"{views} | normalize()"
        assert evaluated == "decode() | normalize()"
    for box in ("augment(inception, 24)", "kdstream.stream.augment:augment(eval, 24)"):
        assert chains(f"decode | {box}")[2] == "decode() | center_box(size=24) | normalize()"
    assert chains(whole, eval_stream="decode | augment(eval, 8)")[2].startswith("decode() | center_box(size=8, ")
    with pytest.raises(UserError, match="normalize has no settings"):
        chains("decode | normalize(std=[1, 1, 1])")


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


def test_stages_of_ones_own_called_as_ours(digits, mine):
    stream = " | ".join(["decode", *(f"{mine}:{name}(by=1)" for name, _ in OWN)])
    recipe = recipe_of(digits, "nowhere", stream=stream, eval_stream=f"decode | {mine}:normalize(by=2)")
    assert roles(training_chain(recipe, True)) == [("decode", None), *OWN, *ENDS]
    assert roles(training_chain(recipe, False)) == [("decode", None), *OWN, ENDS[1]]
    assert roles(evaluation_chain(recipe)) == [("decode", None), OWN[1], ENDS[1]]
    default = recipe.model_copy(update={"eval_stream": None})
    assert str(evaluation_chain(default)) == "decode() | normalize()"
    boxed = default.model_copy(update={"stream": f"{mine}:decode | augment(inception, 12) | {mine}:random_box(size=8)"})
    assert str(evaluation_chain(boxed)) == "decode() | center_box(size=12) | normalize()"


def test_they_take_part_in_a_training(digits, mine, tmp_path):
    stream = " | ".join([f"{mine}:decode", "coded(hkl, delta=50)", *(f"{mine}:{name}" for name, _ in OWN)])
    teacher = {"model": "resnet8", "train": {"loss": "ce"}}
    (result,) = run(recipe_of(digits, tmp_path / "job", stream=stream, teacher=teacher, loss="kd", epochs=1))
    assert sum(result["qualities"].values()) == 240  # ours coded, and our teacher answered
    assert kd.load_student(tmp_path / "job") is not None


def test_mixed_images_train_with_a_coded_teacher(digits, tmp_path):
    """In every order with ``coded``; the label loss learns shares of classes, and the teacher sees the mixture."""
    settings = {"student": "jobs:Plain", "epochs": 1, "batch_size": 80}
    run(recipe_of(digits, tmp_path / "teacher", **settings))
    settings |= {"teacher": {"model": "jobs:Plain", "weights": str(tmp_path / "teacher")}, "loss": {"ce": 1, "kd": 1}}
    for name, stream in {
        "before": "decode | coded(hkl, delta=50) | mix",
        "after": "decode | mix | coded(fixed(30))",
    }.items():
        (result,) = run(recipe_of(digits, tmp_path / name, stream=stream, **settings))
        assert sum(result["qualities"].values()) == len(open_shards(digits / "train"))
        assert result["qualities"].keys() <= ({"-1", "0", "50", "100"} if name == "before" else {"30"})


def test_terms_that_keep_samples_or_classes_refuse_mixed_images(digits, tmp_path):
    for loss, kept in (
        ({"ce": 1, "crd": 1}, "an embedding of each sample"),
        ("kdpp", "the mean feature of each class"),
    ):
        settings = {"teacher": {"model": "resnet8", "weights": "nowhere"}, "loss": loss}
        recipe = recipe_of(digits, tmp_path, stream="decode | augment(cifar) | cutmix(1)", **settings)
        with pytest.raises(UserError, match=rf"loss\.\w+ keeps {kept}, which the images that cutmix mixes of two"):
            check(recipe)
