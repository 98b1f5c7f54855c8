"""A part held out of a training split: of every class its share, by number alone, the same in every process."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs import recipe_of, run

from kdstream.data.held_out import divided, held_out
from kdstream.data.shards import open_shards
from kdstream.errors import UserError
from kdstream.recipe import make_recipe


@given(st.integers(0, 2**40), st.lists(st.integers(0, 60), min_size=2, max_size=4), st.floats(0.01, 0.99))
def test_every_class_gives_its_share_and_keeps_some(seed, sizes, share):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    chosen = held_out(labels, share, seed)
    for number, size in enumerate(sizes):
        count = int(chosen[labels == number].sum())
        assert count == (min(max(round(share * size), 1), size - 1) if size else 0)
    assert np.array_equal(chosen, held_out(labels, share, seed))


def test_the_parts_are_the_split_and_survive_a_process(digits):
    whole = open_shards(digits / "train")
    kept, held = divided(whole, 0.1)
    assert sorted([*kept.numbers, *held.numbers]) == list(range(len(whole)))
    assert kept.fingerprint != held.fingerprint != whole.fingerprint
    assert not np.array_equal(held.numbers, divided(whole, 0.1, seed=1)[1].numbers)
    again = pickle.loads(pickle.dumps(held))
    number = int(held.numbers[3])
    for one in (held, again):
        assert one.key(3) == whole.key(number)
        assert (one.read(3)["index"], one.labels[3]) == (3, whole.labels[number])
        assert one.read(3)["cls"] == whole.read(number)["cls"]
    assert again.fingerprint == held.fingerprint


def test_a_recipe_trains_with_the_rest_and_validates_with_it(digits, tmp_path):
    data = {"path": str(digits), "hold_out": 0.25, "val": "never looked at"}
    recipe = recipe_of(digits, tmp_path / "out", epochs=1, data=data)
    (result,) = run(recipe)
    held = result["altered"]["hold_out"]
    assert 0.2 * 240 < held["samples"] < 0.3 * 240
    right = result["top1"] / 100 * held["samples"]
    assert abs(right - round(right)) < 1e-6, "top-1 is a share of the held-out samples"
    plain = make_recipe({"data": {"path": "x"}, "student": "resnet8"}, "test")
    assert recipe.fingerprint() != recipe_of(digits, tmp_path / "out", epochs=1).fingerprint()
    assert "hold_out" not in plain.to_yaml()


def test_classes_of_one_sample_leave_nothing_to_hold_out(digits):
    whole = open_shards(digits / "train")
    few, _ = divided(whole, 0.01)
    few.labels = np.arange(len(few))
    with pytest.raises(UserError, match="nothing can be held out"):
        divided(few, 0.1)
