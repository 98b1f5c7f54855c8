"""The header of a JPEG file: its size, its tables and where its pixels begin, for the files that are read in part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_TABLE = 16 + 256
"""Bytes of a Huffman table: how many codes there are of each length, then what they stand for."""
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD8)))


@dataclass(frozen=True)
class Header:
    """What is said before the pixels.

    Attributes:
        height, width: of the image as it is stored.
        sampling: (horizontal, vertical) factors by component: one component (grey) or three (Y, Cb, Cr).
        quantisation: by component, the row of ``steps``.
        codes: by component, the rows of ``huffman`` for DC and for AC coefficients.
        steps: uint16 [4,64], quantisation tables in zigzag order.
        huffman: uint8 [8,272]: tables 0 to 3 for DC, then 0 to 3 for AC.
        restart: units (MCUs) between two restart markers; 0 = there are none.
        scan: where the coded pixels begin.
        exif: the EXIF block with its mark; empty where there is none.
    """

    height: int
    width: int
    sampling: tuple[tuple[int, int], ...]
    quantisation: tuple[int, ...]
    codes: tuple[tuple[int, int], ...]
    steps: np.ndarray
    huffman: np.ndarray
    restart: int
    scan: int
    exif: bytes

    @property
    def unit(self) -> tuple[int, int]:
        """(height, width) in pixels of what is coded together (an MCU)."""
        return 8 * max(v for _, v in self.sampling), 8 * max(h for h, _ in self.sampling)


def read_header(data: bytes) -> Header | None:
    """The header of a file that :func:`kdstream.jpeg.part.decode_part` reads.

    That is: sequential Huffman coding, 8 bits, all components in one scan; grey or YCbCr, with chroma of full size or
    halved in either direction.

    Returns:
        None for every other file, be it a rarer kind (progressive, arithmetic, CMYK, RGB, ...), damaged or no JPEG.
    """
    try:
        return _read(data)
    except (IndexError, ValueError):
        return None


def _read(data: bytes) -> Header | None:
    if data[:2] != b"\xff\xd8":
        return None
    steps, huffman = np.zeros((4, 64), np.uint16), np.zeros((8, _TABLE), np.uint8)
    quantised, coded = set[int](), set[int]()
    frame: bytes | None = None
    exif, restart, adobe, jfif = b"", 0, -1, False
    position = 2
    while True:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF or marker in _STANDALONE:
            position += 1 if marker == 0xFF else 2
            continue
        length = data[position + 2] << 8 | data[position + 3]
        start, end = position + 4, position + 2 + length
        if length < 2 or end > len(data):
            return None
        if marker == 0xDA:
            return _scan(data, start, end, frame, (steps, quantised), (huffman, coded), restart, exif, adobe, jfif)
        if marker == 0xC4:
            while start < end:
                kind, table = data[start] >> 4, data[start] & 15
                count = sum(data[start + 1 : start + 17])
                if kind > 1 or table > 3 or count > 256 or start + 17 + count > end:
                    return None
                huffman[4 * kind + table, : 16 + count] = np.frombuffer(data, np.uint8, 16 + count, start + 1)
                coded.add(4 * kind + table)
                start += 17 + count
        elif marker == 0xDB:
            while start < end:
                wide, table = data[start] >> 4, data[start] & 15
                if wide > 1 or table > 3 or start + 1 + 64 * (1 + wide) > end:
                    return None
                steps[table] = np.frombuffer(data, ">u2" if wide else np.uint8, 64, start + 1)
                quantised.add(table)
                start += 1 + 64 * (1 + wide)
        elif marker in (0xC0, 0xC1):
            if frame is not None:
                return None
            frame = data[start:end]
        elif marker == 0xDD:
            restart = data[start] << 8 | data[start + 1]
        elif marker == 0xE0 and data[start : start + 5] == b"JFIF\0":
            jfif = True
        elif marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            if exif:
                return None
            exif = data[start:end]
        elif marker == 0xEE and data[start : start + 5] == b"Adobe" and length >= 14:
            adobe = data[start + 11]
        elif 0xC0 <= marker <= 0xCF or marker in (0xD8, 0xD9, 0xDC):
            return None
        position = end


def _scan(
    data: bytes,
    start: int,
    end: int,
    frame: bytes | None,
    quantisation: tuple[np.ndarray, set[int]],
    huffman: tuple[np.ndarray, set[int]],
    restart: int,
    exif: bytes,
    adobe: int,
    jfif: bool,
) -> Header | None:
    """The header, once the scan's own has been reached."""
    if frame is None or frame[0] != 8 or len(frame) != 6 + 3 * frame[5]:
        return None
    height, width, count = frame[1] << 8 | frame[2], frame[3] << 8 | frame[4], frame[5]
    if not height or not width or count not in (1, 3) or data[start] != count or end - start != 4 + 2 * count:
        return None
    parts = [tuple(frame[6 + 3 * i : 9 + 3 * i]) for i in range(count)]
    chosen = [(data[start + 1 + 2 * i], data[start + 2 + 2 * i]) for i in range(count)]
    names = tuple(part[0] for part in parts)
    if tuple(name for name, _ in chosen) != names or tuple(data[end - 3 : end]) != (0, 63, 0):
        return None
    # As libjpeg decides whether three components are YCbCr.
    if count == 3 and not jfif and (adobe != 1 if adobe >= 0 else names == (82, 71, 66)):
        return None
    # The factors of a single component mean nothing: it is coded block by block.
    sampling = tuple((part[1] >> 4, part[1] & 15) for part in parts) if count == 3 else ((1, 1),)
    if any(factor not in (1, 2) for factor in sampling[0]) or any(factors != (1, 1) for factors in sampling[1:]):
        return None
    steps = tuple(part[2] for part in parts)
    codes = tuple((table >> 4, 4 + (table & 15)) for _, table in chosen)
    if not set(steps) <= quantisation[1] or not {row for pair in codes for row in pair} <= huffman[1]:
        return None
    tables = quantisation[0], huffman[0]
    return Header(height, width, sampling, steps, codes, *tables, restart, end, exif)
