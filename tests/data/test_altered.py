"""Label noise and class imbalance: pure functions of (seed, number), in every process, whatever else is changed."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs import recipe_of, run

import kdstream as kd
from kdstream.data import altered
from kdstream.data.altered import PowerLaw, alter, class_sizes, kept, noisy, told
from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.recipe import make_recipe
from kdstream.training.metrics import read_metrics

PAPER = (0.2, 0.6, 1.0, 2.0)
"""Values of gamma in table VI, where the classes of CIFAR-10 have 250 to 5,000 samples."""


@pytest.mark.parametrize("gamma", PAPER)
def test_the_papers_sizes(gamma):
    sizes = class_sizes(PowerLaw(gamma, 5000, 250), 10)
    assert (sizes[0], sizes[-1], sizes) == (250, 5000, sorted(sizes))


def test_smaller_gammas_are_steeper():
    totals = [sum(class_sizes(PowerLaw(gamma, 5000, 250), 10)) for gamma in PAPER]
    assert totals == sorted(totals)


@given(st.floats(0.05, 4), st.integers(2, 1000), st.integers(1, 500), st.integers(0, 5000))
def test_sizes_lie_between_their_ends(gamma, classes, smallest, more):
    sizes = class_sizes(PowerLaw(gamma, smallest + more, smallest), classes)
    assert (sizes[0], sizes[-1], len(sizes)) == (smallest, smallest + more, classes)
    assert sizes == sorted(sizes)


@given(st.integers(0, 2**40), st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0]), st.integers(2, 20))
def test_noise_replaces_its_share_uniformly(seed, rate, classes):
    labels = np.arange(20_000) % classes
    changed = noisy(labels, rate, classes, seed)
    share = rate * (classes - 1) / classes
    assert abs((changed != labels).mean() - share) < 6 * max(share * (1 - share), 1e-9) ** 0.5 / 20_000**0.5 + 1e-12
    assert (changed.min(), changed.max()) == (0, classes - 1)
    assert np.array_equal(noisy(labels[:300], rate, classes, seed), changed[:300]), "by number alone"


@given(st.integers(0, 2**40), st.lists(st.integers(0, 30), min_size=3, max_size=3))
def test_kept_samples_are_of_their_classes(seed, sizes):
    labels = np.arange(90) % 3
    chosen = kept(labels, sizes, seed)
    assert np.bincount(labels[chosen], minlength=3).tolist() == sizes
    assert (np.diff(chosen) > 0).all()
    fewer = kept(labels, [size // 2 for size in sizes], seed)
    assert set(fewer) <= set(chosen)


def test_an_altered_split_reads_as_its_labels_say(digits):
    base = open_shards(digits / "train")
    shards = alter(base, 0.5, PowerLaw(1.0, 20, 5), seed=3)
    assert np.bincount(shards.true_labels).tolist() == class_sizes(PowerLaw(1.0, 20, 5), 10)
    assert len({base.fingerprint, shards.fingerprint, alter(base, 0.5).fingerprint, alter(base, 0.5, seed=1)}) == 4
    for number in (0, len(shards) - 1):
        own, other = shards.read(number), base.read(int(shards.numbers[number]))
        assert (own["index"], own["__key__"], shards.key(number)) == (number, other["__key__"], other["__key__"])
        assert (int(own["cls"]), int(other["cls"])) == (shards.labels[number], shards.true_labels[number])
    noise = noisy(base.labels, 0.5, 10, 3)
    assert np.array_equal(shards.labels, noise[shards.numbers]), "the fate of a label does not depend on its neighbours"
    assert alter(base) is base


def test_reader_processes_and_pickled_sets_see_the_same(digits):
    base = open_shards(digits / "train")
    base.number_classes(12)
    shards = alter(base, 0.9, seed=1)
    assert shards.labels.max() == 11
    again = pickle.loads(pickle.dumps(shards))
    assert (again.fingerprint, again.num_classes) == (shards.fingerprint, 12)
    assert np.array_equal(again.labels, shards.labels)
    for workers in (0, 1):
        stream = kd.Stream(shards, 60, workers=workers) | kd.decode()
        for batch in stream:
            assert np.array_equal(batch.label.numpy(), shards.labels[batch.index.numpy()])


def test_a_recipe_trains_teacher_and_student_on_the_same_labels(digits, tmp_path):
    data = {"path": str(digits), "label_noise": 0.4, "imbalance": {"gamma": 1.0, "largest": 20, "smallest": 4}}
    teacher = {"model": "resnet8", "train": {"loss": "ce"}}
    (result,) = run(recipe_of(digits, tmp_path / "out", data=data, teacher=teacher, loss={"kd": 1}, epochs=1))
    base = open_shards(digits / "train")
    shards = alter(base, 0.4, PowerLaw(1.0, 20, 4))
    assert result["altered"] == shards.facts
    assert sum(result["altered"]["imbalance"]["sizes"]) == len(shards)
    assert [line.partition(":")[0] for line in told(shards)] == ["imbalance", "label_noise"]


def test_few_images_are_as_many_of_each_class_and_more_are_those_and_others(digits):
    base = open_shards(digits / "train")
    few, more = (alter(base, per_class=count, seed=2) for count in (5, 9))
    assert np.bincount(few.labels).tolist() == [5] * 10
    assert set(few.numbers) < set(more.numbers)
    assert len({base.fingerprint, few.fingerprint, more.fingerprint, alter(base, per_class=5).fingerprint}) == 4
    assert told(few) == ["per_class: 50 of 240 samples are left, 5 of each class"]


def test_a_teacher_of_all_images_teaches_a_student_of_few_that_is_evaluated_now_and_then(digits, tmp_path):
    data = {"path": str(digits), "per_class": 5}
    train = {"loss": "ce", "data": {"per_class": None}, "eval_every": 1, "epochs": 1}
    settings = {"teacher": {"model": "resnet8", "train": train}, "loss": {"kd": 1}, "epochs": 3, "eval_every": 2}
    (result,) = run(recipe_of(digits, tmp_path / "out", data=data, **settings))
    assert result["altered"]["per_class"] == {"images": 5, "seed": 0, "of": 240}
    (teacher,) = (tmp_path / "teachers").iterdir()
    assert "altered" not in json.loads((teacher / "result.json").read_text())
    (row,) = read_metrics(teacher)
    assert row["step"] == 5  # of 48 of all images
    rows = read_metrics(tmp_path / "out")
    assert [("val/top1" in row, row["step"]) for row in rows] == [(False, 2), (True, 4), (True, 6)]
    assert result["top1"] == rows[-1]["val/top1"]
    assert result["best_top1"] == max(row["val/top1"] for row in rows[1:])


def test_what_cannot_be(digits, tmp_path):
    with pytest.raises(UserError, match=r"data\.imbalance asks for 45 samples of class '1', digits/train has 25"):
        alter(open_shards(digits / "train"), law=PowerLaw(1.0, 5000, 20))
    with pytest.raises(UserError, match=r"data\.per_class asks for 99 samples of class '0', digits/train has 23"):
        alter(open_shards(digits / "train"), per_class=99)
    other = {"data": {"path": "x"}, "student": "resnet8", "teacher": {"model": "resnet8", "train": {"data": {}}}}
    other["teacher"]["train"]["data"] = {"path": "y"}
    with pytest.raises(UserError, match=r"teacher\.train cannot have its own 'data'"):
        make_recipe(other, "r")
    recipe = {"data": {"path": "x"}, "student": "resnet8"}
    for data, message in (
        ({"label_noise": 1.2}, r"data\.label_noise: input should be less than or equal to 1"),
        ({"imbalance": {"gamma": 0, "largest": 2, "smallest": 1}}, r"data\.imbalance\.gamma: .*greater than 0"),
        ({"imbalance": {"gamma": 1, "largest": 1, "smallest": 2}}, "smallest is 2, which is more than largest, 1"),
        ({"imbalance": {"gama": 1}}, r"unknown setting .*data\.imbalance\.gama"),
        ({"per_class": 2, "imbalance": {"gamma": 1, "largest": 2, "smallest": 1}}, "both say how many samples"),
        ({"seed": 1}, "seed is that of label_noise, imbalance, per_class and hold_out, and none of them is asked for"),
    ):
        with pytest.raises(UserError, match=message):
            make_recipe({**recipe, "data": {"path": "x", **data}}, "r")


def test_fingerprints_of_older_recipes_stay():
    recipe = make_recipe({"data": {"path": "x"}, "student": "resnet8"}, "r")
    altered = make_recipe({"data": {"path": "x", "label_noise": 0.2}, "student": "resnet8"}, "r")
    seeded = make_recipe({"data": {"path": "x", "label_noise": 0.2, "seed": 1}, "student": "resnet8"}, "r")
    assert len({one.fingerprint() for one in (recipe, altered, seeded)}) == 3
    few = make_recipe({"data": {"path": "x", "per_class": 5}, "student": "resnet8", "eval_every": 2}, "r")
    same = few.model_copy(update={"eval_every": 1, "data": recipe.data})
    assert same.fingerprint() == recipe.fingerprint() != few.fingerprint()


def test_large_splits_are_drawn_for_part_by_part(monkeypatch):
    labels = np.random.default_rng(0).integers(0, 3, 1000)
    whole = noisy(labels, 0.5, 3, 1), kept(labels, [40, 7, 300], 1)
    monkeypatch.setattr(altered, "PART", 64)
    assert np.array_equal(noisy(labels, 0.5, 3, 1), whole[0])
    assert np.array_equal(kept(labels, [40, 7, 300], 1), whole[1])
