"""part: the planes around a box are libjpeg-turbo's, whatever the file; a damaged one is never read beyond its end."""

from __future__ import annotations

import io

import numpy as np
import pytest
from photographs import jpeg, photograph
from PIL import Image

from kdstream.jpeg.header import read_header
from kdstream.jpeg.part import decode_part

PHOTO = photograph(117, 170)


def planes_of_pillow(data):
    """Y, Cb, Cr [H,W] as Pillow gives them; halved chroma is full-sized there."""
    image = Image.open(io.BytesIO(data))
    if image.mode != "L":
        image.draft("YCbCr", image.size)
    pixels = np.asarray(image)
    return [pixels] if pixels.ndim == 2 else list(np.moveaxis(pixels, -1, 0))


def cut(plane, top, left, height, width):
    return plane.pixels[top - plane.top : top - plane.top + height, left - plane.left : left - plane.left + width]


@pytest.mark.parametrize("settings", [
    {"subsampling": 0, "quality": 96, "optimize": True},
    {"subsampling": 1, "quality": 75},
    {"subsampling": 2, "quality": 30},
    {"subsampling": 2, "quality": 100, "restart_marker_blocks": 5},
    {"quality": 90, "grey": True},
    {"quality": 99, "grey": True, "restart_marker_rows": 1},
])  # fmt: skip
def test_samples_are_those_of_libjpeg(settings):
    image = PHOTO.convert("L") if settings.pop("grey", False) else PHOTO
    data = jpeg(image, **settings)
    header, reference = read_header(data), planes_of_pillow(data)
    draw = np.random.default_rng(0)
    boxes = [(0, 0, 117, 170), (116, 169, 1, 1), (0, 0, 1, 1)]
    for _ in range(12):
        height, width = draw.integers(1, 118), draw.integers(1, 171)
        boxes.append((draw.integers(118 - height), draw.integers(171 - width), height, width))
    for box in [tuple(map(int, box)) for box in boxes]:
        top, left, height, width = box
        planes = decode_part(data, header, *box)
        assert len(planes) == len(reference)
        for plane, whole in zip(planes, reference, strict=True):
            if plane.down == plane.across == 1:
                assert np.array_equal(cut(plane, *box), whole[top : top + height, left : left + width])
            else:
                assert (plane.height, plane.width) == (-(-117 // plane.down), -(-170 // plane.across))
    if reference[1:] and header.unit == (16, 16):
        # Chroma made full-sized as libjpeg does inside of an image: 9/16, 3/16, 3/16, 1/16.
        whole = decode_part(data, header, 0, 0, 117, 170)[1].pixels[:59, :85].astype(int)
        even = 9 * whole[1:-1, 1:-1] + 3 * whole[:-2, 1:-1] + 3 * whole[1:-1, :-2] + whole[:-2, :-2]
        assert np.array_equal((even + 8) >> 4, reference[1][2:116:2, 2:168:2])


def test_a_damaged_file_is_refused_or_read_to_its_end():
    data = jpeg(PHOTO, quality=90, subsampling=2, restart_marker_blocks=8)
    header, draw = read_header(data), np.random.default_rng(0)
    assert decode_part(data[:-2], header, 0, 0, 8, 8) is None, "without the mark of its end"
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for place in draw.integers(20, len(data), 3):
            damaged[place] = draw.integers(256)
        header = read_header(bytes(damaged))
        if header is None or header.height * header.width > 1 << 22:
            continue
        planes = decode_part(bytes(damaged), header, 0, 0, header.height, header.width)
        refused += planes is None
    assert refused > 20
