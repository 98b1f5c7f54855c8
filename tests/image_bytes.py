"""PNG and TIFF files made byte by byte, for what Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image: Image.Image, form: str, **settings) -> bytes:
    """The file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, form, **settings)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes], before: bytes = b"", after: bytes = b""):
    """A PNG of packed rows; ``before`` and ``after`` are chunks around the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(tags: dict[int, int | tuple[int, ...]], pixels: bytes) -> bytes:
    """A little-endian TIFF of one strip; tags are given as 32-bit integers, (value, ...) as several 16-bit ones."""
    every = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1 << 20, 279: len(pixels), **tags}
    every[273] = start = 8
    entries, extra = b"", b""
    first = start + len(pixels)
    beyond = first + 2 + 12 * len(every) + 4
    for tag, value in sorted(every.items()):
        if isinstance(value, tuple):
            entries += struct.pack("<HHII", tag, 3, len(value), beyond + len(extra))
            extra += struct.pack(f"<{len(value)}H", *value) + bytes(8)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, value)
    return b"II*\0" + struct.pack("<I", first) + pixels + struct.pack("<H", len(every)) + entries + bytes(4) + extra


def exif(orientation: int) -> bytes:
    """An EXIF block with an orientation."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def ramp(dtype: type = np.uint16, step: int = 257) -> np.ndarray:
    """[2,256]: value i * step in column i."""
    return (np.arange(256) * step).astype(dtype)[None].repeat(2, 0)
