"""Making photographs smaller when shards are made: once, instead of at every reading."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from kdstream.data.image_file import MAX_PIXELS, open_image, to_rgb, upright_size
from kdstream.errors import UserError

QUALITY = 95
"""Of the JPEG that a smaller image is stored as."""
GAP = 3.0
"""A JPEG is decoded at a scale that leaves at least so many times the size that is wanted."""


@dataclass(frozen=True)
class Smaller:
    """How images are made smaller: to a shorter side of ``short`` pixels, as JPEG of ``quality``."""

    short: int
    quality: int = QUALITY

    def __post_init__(self) -> None:
        if self.short < 1:
            raise UserError(f"the shorter side must have at least 1 pixel, not {self.short}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"the quality of a JPEG is 1 to 100, not {self.quality}")

    def __call__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> bytes | None:
        """An image made smaller; None for one whose shorter side is not longer than ``short``, which stays as it is.

        Upright, RGB (see :func:`~kdstream.data.image_file.to_rgb`), antialiased (Lanczos over the whole of each new
        pixel); a JPEG is decoded at a power of 2 of its size where that leaves three times the pixels that are wanted
        along each side.

        Args:
            data: the file's bytes.
            max_pixels: see :func:`~kdstream.data.image_file.open_image`.

        Raises:
            Exception: what :func:`~kdstream.data.image_file.open_image` and Pillow raise for what they cannot read.
        """
        with open_image(data, max_pixels) as image:
            height, width = upright_size(image)
            least = min(height, width)
            if least <= self.short:
                return None
            size = (max(1, round(width * self.short / least)), max(1, round(height * self.short / least)))
            if image.format == "JPEG":
                wanted = GAP * self.short / least
                image.draft(None, (int(image.width * wanted), int(image.height * wanted)))
            made = to_rgb(image).resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        made.save(buffer, "JPEG", quality=self.quality)
        return buffer.getvalue()
