"""erasing: boxes as timm draws them, paint by kind, the same for any slicing and all versions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kdstream as kd
from kdstream.batch import Batch
from kdstream.errors import UserError
from kdstream.rng import sample_keys
from kdstream.stream.erasing import boxes

KNOWN = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.1, 0.1)}


def batch_of(count: int, seed: int = 0, side: int = 16) -> Batch:
    """White images."""
    index = torch.arange(count)
    image = torch.full((count, 3, side, side), 255, dtype=torch.uint8)
    return Batch(image, index, index, rng_key=sample_keys(seed, 0, index))


def erased(batch: Batch, *args, **settings) -> Batch:
    return next(kd.erasing(*args, **settings).bind(KNOWN)(iter([batch])))


def test_boxes_have_the_areas_and_ratios_asked_for():
    inside = boxes(sample_keys(0, 0, torch.arange(2000)), 100, 80, (0.02, 0.3), (0.5, 2))[:, 0]
    tall, wide = (inside.any(dim=axis).sum(1).double() for axis in (2, 1))
    assert inside.sum(dim=(1, 2)).equal((tall * wide).long()), "boxes, all of them"
    share, ratio = tall * wide / 8000, tall / wide
    assert 0.018 < float(share.min()) < 0.025
    assert 0.29 < float(share.max()) < 0.31
    assert abs(float(share.mean()) - 0.16) < 0.005, "uniform"
    assert 0.45 < float(ratio.min()) < float(ratio.max()) < 2.2
    assert abs(float(ratio.log().mean())) < 0.05, "log-uniform"


def test_a_box_that_never_fits_is_none():
    assert not boxes(sample_keys(0, 0, torch.arange(20)), 4, 4, (0.9, 1.0), (3.0, 4.0)).any()


@pytest.mark.parametrize("fill", ["pixel", "color", "mean"])
@given(seed=st.integers(0, 50), cut=st.integers(0, 12))
@settings(max_examples=10, deadline=None)
def test_what_is_erased_depends_on_the_key_only(fill, seed, cut):
    batch = batch_of(12, seed)
    whole = erased(batch, 0.5, fill=fill).image
    parts = [batch.map_tensors(lambda one, at=at: one[at]) for at in (slice(0, cut), slice(cut, 12))]
    assert torch.cat([erased(part, 0.5, fill=fill).image for part in parts if len(part)]).equal(whole)
    assert batch.image.min() == 255, "the images that came in are as they were"


@pytest.mark.parametrize("fill", ["pixel", "color", "mean"])
def test_paint(fill):
    made = erased(batch_of(4000), 0.25, fill=fill, area=(0.3, 0.3), ratio=(1, 1)).image
    inside = (made != 255).any(1)
    assert abs(float(inside.flatten(1).any(1).float().mean()) - 0.25) < 0.03
    pixels = made.float().div(255).movedim(1, -1)[inside]
    torch.testing.assert_close(pixels.mean(0), torch.tensor(KNOWN["mean"]), atol=0.01, rtol=0)
    expected = torch.full((3,), 0.0 if fill == "mean" else 0.1)
    torch.testing.assert_close(pixels.std(0), expected, atol=0.008, rtol=0)
    box = made[int(inside.flatten(1).any(1).nonzero()[0])][:, inside[int(inside.flatten(1).any(1).nonzero()[0])]]
    assert (len(box[0].unique()) > 2) == (fill == "pixel")


def test_versions_get_the_same_paint():
    batch = batch_of(8)
    batch.variants = torch.stack([batch.image, batch.image - 50], dim=1)
    made = erased(batch, 1.0)
    painted = made.image != 255
    assert painted.any()
    assert made.variants[:, 0].equal(made.image)
    assert made.variants[:, 1].equal(torch.where(painted.any(1, keepdim=True), made.image, 205))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 2}, r"^erasing: p is 2; it is a number from 0 to 1$"),
        ({"fill": "noise"}, "fill is 'noise'; it is one of pixel, color, mean"),
        ({"area": 0.5}, "area is 0.5; it is the least and the largest"),
        ({"area": [0.5, 0.2]}, "area, the largest, is 0.2"),
        ({"ratio": [0, 1]}, "ratio, the least, is 0"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        kd.erasing(**settings)
