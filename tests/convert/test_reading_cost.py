"""What large photographs cost: said of those alone, with times that were measured and an offer that is smaller."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

from kdstream.convert.reading_cost import cost_of, is_large
from kdstream.convert.split import ArraySplit
from kdstream.data.image_stats import ImageStats


def test_large_images_are_told_with_an_offer():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 900, 1200, 3), np.uint8)
    images, stats = ArraySplit(pixels, ["a", "b"], [0, 1]), ImageStats()
    for i in range(2):
        stats.add(Image.open(io.BytesIO(images.load(i))))
    assert is_large(stats)
    (line,) = cost_of("train", images, [0, 1], stats)
    found = re.fullmatch(
        r"the images of train have 1\.1 megapixels on the average: to decode one takes (\d+) ms of a core here, an "
        r"epoch of 2 images .* s; with --resize 256 it takes ([\d.]+) ms and .* s, and (\d+) KB an image in place of "
        r"([\d,]+)",
        line,
    )
    assert float(found[1]) > float(found[2])
    assert int(found[3]) < int(found[4].replace(",", ""))
    damaged = ArraySplit(pixels[:1], ["a"], [0])
    damaged.load = lambda i: b"hello"
    assert cost_of("train", damaged, [0], stats) == []


def test_small_images_cost_nothing_that_is_worth_a_line():
    stats = ImageStats()
    stats.add(Image.new("RGB", (640, 480)))
    assert not is_large(stats)
