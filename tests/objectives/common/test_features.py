"""A pair of features on its way to a comparison: one size, vectors, products in the precision of their factors."""

from __future__ import annotations

import torch
from builders import maps
from hypothesis import given
from hypothesis import strategies as st

from kdstream.objectives.common.features import product, same_size, tap_pair, vectors

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(ours=sizes, theirs=sizes)
def test_both_maps_come_at_the_smaller_height_and_width_and_keep_their_mean(ours, theirs):
    student, teacher = maps(2, 3, *ours), maps(2, 4, *theirs)
    small = (min(ours[0], theirs[0]), min(ours[1], theirs[1]))
    for given_, found in zip((student, teacher), same_size(student, teacher), strict=True):
        assert found.shape == (2, given_.shape[1], *small)
        if given_.shape[2:] == small:
            assert found is given_
        elif all(large % little == 0 for large, little in zip(given_.shape[2:], small, strict=True)):
            torch.testing.assert_close(found.mean((2, 3)), given_.mean((2, 3)))


def test_another_pool_may_be_given():
    smaller, larger = same_size(maps(2, 3, 2, 2), maps(2, 4, 4, 4), torch.nn.functional.adaptive_max_pool2d)
    assert smaller.equal(maps(2, 3, 2, 2))
    assert larger.equal(maps(2, 4, 4, 4).unflatten(2, (2, 2)).unflatten(4, (2, 2)).amax((3, 5)))


def test_autocast_does_not_round_products():
    left, right = maps(5, 8), maps(8, 5, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, found = left @ right, product(left, right)
    assert rounded.dtype == torch.bfloat16
    assert found.equal(left @ right)


def test_vectors_and_tap_names():
    assert vectors(maps(2, 3, 4, 4).half()).shape == (2, 48)
    assert vectors(maps(2, 3, 4, 4).half()).dtype == torch.float32
    assert tap_pair("block3", None) == (("block3",), ("block3",))
    assert tap_pair("block3", "layer3") == (("block3",), ("layer3",))
