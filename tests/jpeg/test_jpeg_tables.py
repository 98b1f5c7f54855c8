"""The quantisation tables are those that Pillow writes; the DCT matrix and the colour weights are what they claim."""

from __future__ import annotations

import io
import math

import pytest
import torch
from PIL import Image

from kdstream.errors import UserError
from kdstream.jpeg import quant_table
from kdstream.jpeg.tables import (
    CHROMINANCE,
    COLOR_BITS,
    CONST_BITS,
    LUMINANCE,
    dct_matrix,
    rgb_to_ycc_weights,
    ycc_to_rgb_weights,
)


def tables_of_pillow(quality: int) -> list[list[int]]:
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, format="JPEG", quality=quality)
    written = Image.open(io.BytesIO(file.getvalue())).quantization
    return [list(written[0]), list(written[1])]


def test_tables_equal_those_in_files_of_pillow_at_every_quality():
    for quality in range(101):
        ours = [quant_table(quality, chroma).flatten().tolist() for chroma in (False, True)]
        assert ours == tables_of_pillow(quality), quality


def test_landmarks_of_the_scale():
    assert quant_table(50, False).tolist() == [list(row) for row in LUMINANCE]
    assert quant_table(50, True).tolist() == [list(row) for row in CHROMINANCE]
    assert quant_table(100, True).eq(1).all()
    assert quant_table(0, False).equal(quant_table(1, False))
    assert quant_table(1, False).eq(255).all()


def test_a_tensor_of_qualities_gives_a_table_each():
    qualities = torch.tensor([[0, 13, 50], [75, 99, 100]])
    tables = quant_table(qualities, True)
    assert tables.shape == (2, 3, 8, 8)
    assert tables.dtype == torch.int64
    for row in range(2):
        for column in range(3):
            assert tables[row, column].equal(quant_table(int(qualities[row, column]), True))


@pytest.mark.parametrize("quality", [-1, 101, 50.0, True, "50", None])
def test_bad_quality(quality):
    with pytest.raises(UserError, match="JPEG qualit"):
        quant_table(quality, False)


def test_dct_matrix_is_a_rounded_dct():
    ours = dct_matrix().double() / (1 << CONST_BITS)
    frequency, position = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(8.0, dtype=torch.float64)
    exact = torch.cos((2 * position + 1) * frequency * math.pi / 16) * math.sqrt(2)
    exact[0] = 1
    # An odd row's entry is a sum of at most three constants, each rounded to a half unit.
    assert (ours - exact).abs().max() <= 1.5 / (1 << CONST_BITS)
    assert not ours.equal((exact * (1 << CONST_BITS)).round() / (1 << CONST_BITS))


def test_colour_weights_keep_grey():
    for weights, bias in (rgb_to_ycc_weights(), ycc_to_rgb_weights()):
        assert weights.dtype == bias.dtype == torch.int64
    grey = torch.arange(256).expand(3, -1)
    weights, bias = rgb_to_ycc_weights()
    ycc = (weights @ grey + bias[:, None]) >> COLOR_BITS
    assert ycc[0].equal(grey[0])
    assert ycc[1:].eq(128).all()
    weights, bias = ycc_to_rgb_weights()
    assert ((weights @ ycc + bias[:, None]) >> COLOR_BITS).equal(grey)
