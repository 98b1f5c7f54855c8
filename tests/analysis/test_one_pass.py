"""One pass over a split: every image once, in the order of the disk; or so many of a fixed random order."""

from __future__ import annotations

import pytest
import torch

from kdstream.analysis.one_pass import one_pass
from kdstream.data.shards import open_shards
from kdstream.errors import UserError


@pytest.fixture(scope="module")
def val(digits):
    return open_shards(digits / "val")


def order(shards, **settings) -> list[int]:
    return torch.cat([batch.index for batch in one_pass(shards, **settings)]).tolist()


@pytest.mark.parametrize("batch_size", [70, 1000])
def test_all_images_come_once_in_the_order_of_the_disk(val, batch_size):
    assert order(val, batch_size=batch_size) == [*range(len(val))]
    assert order(val, batch_size=batch_size, limit=len(val)) == [*range(len(val))]


def test_a_part_is_the_beginning_of_one_random_order_whatever_the_batches(val):
    whole = order(val, limit=len(val) - 1)
    assert sorted(set(whole)) != whole
    for limit, batch_size in ((1, 100), (45, 20), (45, 45), (60, 7)):
        assert order(val, limit=limit, batch_size=batch_size) == whole[:limit]
    assert len(set(val.labels[whole[:60]].tolist())) == 10


def test_images_of_different_sizes_are_cut_to_one(uneven):
    (batch,) = one_pass(uneven, size=16)
    assert batch.image.shape == (4, 3, 16, 16)
    with pytest.raises(UserError, match="differ in size: give a size to cut them to"):
        next(one_pass(uneven))
    with pytest.raises(UserError, match="limit is 0: it is a number of images, 1 or more"):
        next(one_pass(uneven, size=16, limit=0))
