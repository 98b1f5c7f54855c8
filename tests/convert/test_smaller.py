"""Smaller images: the size that was asked for, upright, close to what an exact resize gives; small ones untouched."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from kdstream.convert.smaller import Smaller
from kdstream.errors import UserError


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """A smooth picture of 600 x 400 pixels with fine stripes, which a resize without antialiasing turns into bands."""
    y, x = np.mgrid[0:400, 0:600]
    values = np.stack([x * 255 / 599, y * 255 / 399, np.where(x % 2, 200, 60)], -1)
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_shorter_side_and_the_pixels_of_an_exact_resize(scene, kind):
    data = encoded(scene, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    made = Image.open(io.BytesIO(Smaller(64, 100)(data)))
    assert (made.format, made.size) == ("JPEG", (96, 64))
    exact = np.asarray(scene.resize((96, 64), Image.Resampling.LANCZOS), np.float64)
    assert np.abs(np.asarray(made, np.float64) - exact).mean() < 2.5
    stripes = np.asarray(made)[:, :, 2].astype(float)
    assert stripes.std() < 12, "stripes finer than a pixel become their mean"


def test_turned_images_are_stored_upright_and_small_ones_not_at_all(scene):
    exif = Image.Exif()
    exif[0x0112] = 6
    made = Image.open(io.BytesIO(Smaller(100)(encoded(scene, "JPEG", exif=exif))))
    assert made.size == (100, 150)
    assert not made.getexif()
    assert Smaller(400)(encoded(scene, "PNG")) is None
    assert len(Smaller(100, 30)(encoded(scene, "PNG"))) < len(Smaller(100, 95)(encoded(scene, "PNG")))


def test_sizes_and_qualities_that_there_are_not():
    for arguments, said in (((0,), "at least 1 pixel"), ((10, 0), "quality of a JPEG is 1 to 100, not 0")):
        with pytest.raises(UserError, match=said):
            Smaller(*arguments)
