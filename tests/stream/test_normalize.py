"""normalize: pixels standardised by channel, also where all are alike, and bytes back from floats."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from small_teacher import MEAN, STD, batch_of

from kdstream.stream.normalize import normalize, standardise, to_bytes, to_unit


def test_normalize():
    batch = batch_of()
    out = next(normalize(mean=MEAN, std=STD)(iter([batch]))).image
    for c in range(3):
        torch.testing.assert_close(out[:, c], (batch.image[:, c].double() / 255 - MEAN[c]).div(STD[c]).float())


def test_images_all_alike_are_not_divided_by_nothing():
    image = torch.full((2, 3, 4, 4), 0.5)
    assert standardise(image, (0.5,) * 3, (0.0,) * 3).equal(torch.zeros(2, 3, 4, 4))
    assert standardise(image.double(), MEAN, STD).dtype == torch.float64


@given(st.lists(st.integers(0, 255), min_size=1))
def test_bytes_survive_floats(values):
    pixels = torch.tensor(values, dtype=torch.uint8)
    assert to_bytes(to_unit(pixels)).equal(pixels)
    assert to_bytes(to_unit(pixels) + 0.001).equal(pixels)
    assert to_unit(to_unit(pixels)).equal(to_unit(pixels))
    assert to_bytes(torch.tensor([-0.5, 1.5])).tolist() == [0, 255]
