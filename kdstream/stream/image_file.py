"""Opening image files: raster formats only, whatever a file calls itself."""

from __future__ import annotations

import io

from PIL import Image

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "JPEG2000", "AVIF")
# Pillow goes by content, not by name, and hands PostScript to an interpreter, a program that runs what it reads.


def open_image(data: bytes) -> Image.Image:
    """An image, not yet decoded; a context manager.

    Args:
        data: the file's bytes: JPEG, PNG, WebP, BMP, PPM, TIFF, GIF, JPEG 2000 or AVIF, as far as this Pillow has them.

    Raises:
        PIL.UnidentifiedImageError: none of these.
        OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError: a damaged or hostile file; also
            when the pixels are read.
    """
    Image.init()
    return Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
