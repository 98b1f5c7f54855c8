"""Images with the spectrum of photographs: noise at several frequencies, smooth for the most part."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB image of width x height: the finer its waves, the weaker, and colours vary less than brightness."""
    draw = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for size, strength in ((2, 60), (5, 40), (12, 22), (40, 10), (120, 5)):
        light, colour = draw.normal(size=(size, size, 1)), draw.normal(size=(size, size, 3))
        waves = (light + 0.5 * colour) * strength
        for c in range(3):
            plane = Image.fromarray(waves[..., c].astype(np.float32))
            total[..., c] += np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **settings: object) -> bytes:
    """The JPEG file that Pillow writes of it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **settings)
    return buffer.getvalue()
