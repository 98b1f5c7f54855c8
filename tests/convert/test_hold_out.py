"""Holding out: the same share of every class, by the keys alone."""

from __future__ import annotations

import numpy as np
import pytest

from kdstream.convert.hold_out import hold_out
from kdstream.convert.split import ArraySplit, Source
from kdstream.errors import UserError


def source(sizes: list[int], **more: ArraySplit) -> Source:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    keys = [f"{label}/{i}" for i, label in enumerate(labels)]
    train = ArraySplit(np.zeros((len(labels), 2, 2), np.uint8), keys, labels)
    return Source("birds", [str(label) for label in range(len(sizes))], {"train": train, **more})


def test_every_class_gives_its_share_and_nothing_is_lost():
    whole = source([100, 30, 4, 1])
    made = hold_out(whole, 0.1)
    assert list(made.splits) == ["train", "val"]
    assert np.bincount(made.splits["val"].labels, minlength=4).tolist() == [10, 3, 0, 0]
    assert sorted(made.splits["train"].keys + made.splits["val"].keys) == sorted(whole.splits["train"].keys)
    assert made.notes == ["13 of 135 images are held out of 'train' as the split 'val' (0.1 of each class)"]


def test_the_draw_depends_on_keys_and_seed_and_grows_with_the_share():
    whole = source([50, 50])
    held = {share: set(hold_out(whole, share).splits["val"].keys) for share in (0.1, 0.3)}
    assert held[0.1] < held[0.3]
    assert held[0.3] != set(hold_out(whole, 0.3, seed=1).splits["val"].keys)
    turned = whole.splits["train"].subset(range(99, -1, -1))
    assert set(hold_out(Source("birds", whole.classes, {"train": turned}), 0.3).splits["val"].keys) == held[0.3]


def test_what_cannot_be_held_out():
    other = source([3]).splits["train"]
    for made, share, said in (
        (source([10]), 1.0, "between 0 and 1"),
        (source([10], val=other), 0.1, "has the split 'val' already"),
        (source([4, 4]), 0.1, "a share of 0.1 of every class is no image"),
        (Source("birds", ["0"], {"test": other}), 0.1, "birds has test"),
    ):
        with pytest.raises(UserError, match=said):
            hold_out(made, share)
