"""Reading JPEG files in part (numba): Huffman decoding, and the inverse DCT of the blocks that are wanted.

Importing this module compiles the kernel or reads it from numba's cache on disk.
"""

# mypy: disable-error-code="assignment"
# Numbers that numba makes int64 are Python's and numpy's in turn to mypy.

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
from numba import njit, types

from kdstream.jpeg import cpu_blocks, vectors
from kdstream.jpeg import tables as jpeg_tables
from kdstream.jpeg.compiled import compiled
from kdstream.jpeg.cpu_blocks import (
    LANES,
    PAIRS_SPLIT,
    PLANE,
    ROW,
    V,
    at,
    copy_8,
    inverse_columns_read,
    inverse_rows_plane,
    load_64,
    positions,
)

BITS = 10
"""Codes of so many bits, with what follows them, are decoded by one look into a table."""
TABLE_WORDS = (1 << BITS) + 64
"""int32 of one decoding table: the look-up; for longer codes, by length, the first code that is longer (16 bits), where
their symbols begin; 2 * 17 words, rounded up."""
SPARE = 2048
"""Zero bytes after the coded ones: more than a unit of 6 blocks can take, so that only its end need be checked."""
GOOD, BAD = 0, 1

_inner = njit(error_model="numpy", nogil=True)

# Where the coefficients of a block stand in its group, see cpu_blocks: 4 * column's place + pair's place, and its half.
_ZIGZAG = [
    (d - c if d % 2 else c, c if d % 2 else d - c) for d in range(15) for c in range(max(0, d - 7), min(d, 7) + 1)
]
_COLUMN = {column: i for i, column in enumerate(c for pair in PAIRS_SPLIT for c in pair)}
_PAIR = {row: (j, half) for j, pair in enumerate(PAIRS_SPLIT) for half, row in enumerate(pair)}


def _place(row: int, column: int) -> int:
    pair, half = _PAIR[row]
    return (4 * _COLUMN[column] + pair) * (V // 2) + half


PLACES = np.array([_place(column, row) for row, column in _ZIGZAG] + [0] * 64, np.int32)
_LANE = np.array([2 * positions().index(block) for block in range(LANES)], np.int32)


@_inner
def _table(given, words, is_dc):
    """A decoding table of a Huffman table's bytes; BAD where they are none.

    An entry of the look-up: bits that are used (0 to 5), whether the value's own bits must still be read (6), how far
    the position in the block goes on before the value (8 to 14), the value, or how many bits it has (16 to 31). 0: the
    code is longer.
    """
    for i in range(1 << BITS):
        words[i] = 0
    first, symbol, code = 1 << BITS, 16, 0
    for length in range(1, 17):
        count = np.int64(given[length - 1])
        words[first + 20 + length] = symbol - code
        for _ in range(count):
            if code >= 1 << length:
                return BAD
            value = np.int64(given[symbol])
            size = value if is_dc else value & 15
            if size > 15 or symbol >= 272:
                return BAD
            skip = 0 if is_dc else value >> 4
            if not is_dc and size == 0 and skip < 15:
                skip = 64  # end of block; runs of more blocks belong to progressive files
            if length <= BITS:
                start = code << (BITS - length)
                rest = BITS - length
                if size == 0:
                    for i in range(1 << rest):
                        words[start + i] = length | skip << 8
                elif size <= rest:
                    spare = rest - size
                    for bits in range(1 << size):
                        level = bits if bits >> (size - 1) else bits - (1 << size) + 1
                        entry = (length + size) | skip << 8 | level << 16
                        for i in range(1 << spare):
                            words[start + (bits << spare) + i] = entry
                else:
                    for i in range(1 << rest):
                        words[start + i] = length | 64 | skip << 8 | size << 16
            code += 1
            symbol += 1
        words[first + length] = code << (16 - length)
        code <<= 1
    return GOOD


@_inner
def _clean(data, start, end, clean, segments):
    """The coded bytes without what is put in after each 255; where the parts between restart markers begin.

    Returns:
        How many bytes, how many parts; -1 parts where the file ends before its end is marked.
    """
    source = numba.carray(at(data), (end,), np.uint8)
    target = numba.carray(at(clean), (end - start + SPARE,), np.uint8)
    segments[0] = 0
    position, done, parts = np.uint64(start), np.uint64(0), 1
    last = np.uint64(end)
    ones, highest = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
    while position + np.uint64(8) < last:
        word = ~load_64(np.int64(data + np.int64(position)))
        if (word - ones) & ~word & highest == np.uint64(0):
            copy_8(data + np.int64(position), clean + np.int64(done))
            position += np.uint64(8)
            done += np.uint64(8)
            continue
        stop = position + np.uint64(8)
        while position < stop:
            byte = source[position]
            if byte != 255:
                target[done] = byte
                done += np.uint64(1)
                position += np.uint64(1)
                continue
            following = source[position + np.uint64(1)]
            if following == 0:
                target[done] = 255
                done += np.uint64(1)
                position += np.uint64(2)
            elif following == 255:
                position += np.uint64(1)
            elif 208 <= following <= 215:
                if following - 208 != (parts - 1) % 8 or parts >= len(segments):
                    return np.int64(done), np.int64(-1)
                segments[parts] = np.int64(done)
                parts += 1
                position += np.uint64(2)
            else:
                return np.int64(done), (np.int64(parts) if following == 217 else np.int64(-1))
    while position + np.uint64(1) < last:
        byte = source[position]
        if byte != 255:
            target[done] = byte
            done += np.uint64(1)
            position += np.uint64(1)
            continue
        following = source[position + np.uint64(1)]
        if following == 0:
            target[done] = 255
            done += np.uint64(1)
            position += np.uint64(2)
        elif following == 255:
            position += np.uint64(1)
        elif 208 <= following <= 215:
            if following - 208 != (parts - 1) % 8 or parts >= len(segments):
                return np.int64(done), np.int64(-1)
            segments[parts] = np.int64(done)
            parts += 1
            position += np.uint64(2)
        else:
            return np.int64(done), (np.int64(parts) if following == 217 else np.int64(-1))
    return np.int64(done), np.int64(-1)


@_inner
def _long(words, window, is_dc, huffman):
    """(bits, skip, size) of a code longer than BITS, from the next 16 bits; 0 bits where there is no such code."""
    first = 1 << BITS
    for length in range(BITS + 1, 17):
        if window < words[first + length]:
            symbol = np.int64(words[first + 20 + length]) + (window >> (16 - length))
            if symbol < 16 or symbol >= 272:
                return 0, 0, 0
            value = np.int64(huffman[symbol])
            size = value if is_dc else value & 15
            skip = 0 if is_dc else value >> 4
            if not is_dc and size == 0 and skip < 15:
                skip = 64
            return length, skip, size
    return 0, 0, 0


@_inner
def _rows(coefficients, planes, count, sampling, across, groups, strides, base, row, work):
    """Inverse DCT of one row of units: coefficients -> rows of the planes."""
    for c in range(count):
        for r in range(sampling[c, 1]):
            target = planes[c] + (row * sampling[c, 1] + r) * 8 * strides[c]
            for g in range(groups[c]):
                start = coefficients + 2 * (base[c] + (r * groups[c] + g) * (PLANE // 2))
                for i in range(4):
                    inverse_columns_read(start + 8 * i * V, work + i * V)
                for y in range(8):
                    inverse_rows_plane(work + 4 * y * V, target + y * strides[c] + g * ROW)


@_inner
def _decode(data, end, header, tables, steps, place, planes, workspace):
    """Decode the units that a part of an image lies in.

    Args:
        data: address of the file's bytes, ``end`` of them.
        header: int64: [scan, restart, components, units across, units down, then by component: horizontal and vertical
            factor, row of ``steps``, row of ``tables`` for DC and for AC].
        tables: uint8 [8,272].
        steps: uint16 [4,64].
        place: int64 [4]: first row of units, the one after the last, the same of columns.
        planes: int64 [count,2]: address and bytes of a row, of each component's plane.
        workspace: address of as many bytes as :func:`workspace` says.

    Returns:
        GOOD, or BAD where the file is damaged or unusual.
    """
    scan, restart, count, across, down = header[0], header[1], header[2], header[3], header[4]
    top, bottom, left, right = place[0], place[1], place[2], place[3]
    wide = right - left
    sampling = np.empty((3, 2), np.int64)
    groups, strides = np.empty(3, np.int64), np.empty(3, np.int64)
    base, address = np.empty(3, np.int64), np.empty(3, np.int64)
    total = 0
    for c in range(count):
        sampling[c, 0], sampling[c, 1] = header[5 + 5 * c], header[6 + 5 * c]
        groups[c] = -(-wide * sampling[c, 0] // LANES)
        address[c], strides[c] = planes[c, 0], planes[c, 1]
        base[c] = total
        total += sampling[c, 1] * groups[c] * (PLANE // 2)
    work = workspace
    first_word = work + PLANE
    coefficients = first_word + 8 * TABLE_WORDS * 4
    clean = coefficients + 2 * total
    units = across * down
    words = numba.carray(at(first_word), (8, TABLE_WORDS), np.int32)
    values = numba.carray(at(coefficients), (total,), np.int16)
    for c in range(count):
        for kind in range(2):
            row = header[8 + 5 * c + kind]
            if _table(tables[row], words[row], kind == 0) == BAD:
                return BAD
    segments = np.empty(-(-units // restart) + 1 if restart else 1, np.int64)
    length, parts = _clean(data, scan, end, clean, segments)
    if parts < 1:
        return BAD
    tail = numba.carray(at(clean), (length + SPARE,), np.uint8)
    for i in range(length, length + SPARE):
        tail[i] = 0

    # The blocks of a unit: component, row and column in it.
    blocks = 0
    of, sub_row, sub_column = np.empty(6, np.int64), np.empty(6, np.int64), np.empty(6, np.int64)
    for c in range(count):
        for r in range(sampling[c, 1]):
            for s in range(sampling[c, 0]):
                of[blocks], sub_row[blocks], sub_column[blocks] = c, r, s
                blocks += 1
    scaled = np.zeros((3, 128), np.int32)
    for c in range(count):
        for k in range(64):
            scaled[c, k] = steps[header[7 + 5 * c], k]

    predicted = np.zeros(3, np.int32)
    buffer, bits, position = np.uint64(0), np.uint64(0), clean
    first = top * across // restart * restart if restart else 0  # what lies before its marker need not be read
    part = first // restart if restart else 0
    if part >= parts:
        return BAD
    position = clean + segments[part]
    limit = clean + (segments[part + 1] if part + 1 < parts else length)
    left_in_part = restart if restart else units
    look = np.uint64(64 - BITS)
    unit = first
    for row in range(first // across, bottom):
        inside_row = row >= top
        if inside_row:
            for i in range(total):
                values[i] = 0
        for column in range(unit - row * across, across):
            if left_in_part == 0:
                part += 1
                if part >= parts:
                    return BAD
                position = clean + segments[part]
                limit = clean + (segments[part + 1] if part + 1 < parts else length)
                buffer, bits = np.uint64(0), np.uint64(0)
                left_in_part = restart
                predicted[:] = 0
            left_in_part -= 1
            unit += 1
            inside = inside_row and left <= column < right
            for b in range(blocks):
                c = of[b]
                dc, ac = words[header[8 + 5 * c]], words[header[9 + 5 * c]]
                if bits < np.uint64(32):
                    buffer |= load_64(position) >> bits
                    position += np.int64((np.uint64(63) - bits) >> np.uint64(3))
                    bits |= np.uint64(56)
                entry = np.int64(dc[buffer >> look])
                size = 0
                if entry == 0:
                    used, skip, size = _long(dc, np.int64(buffer >> np.uint64(48)), True, tables[header[8 + 5 * c]])
                    if used == 0:
                        return BAD
                    level = 0
                else:
                    used = entry & 63
                    level = entry >> 16
                    if entry & 64:
                        size = level
                        level = 0
                buffer <<= np.uint64(used)
                bits -= np.uint64(used)
                if size:
                    level = np.int64(buffer >> np.uint64(64 - size))
                    if level < 1 << (size - 1):
                        level += 1 - (1 << size)
                    buffer <<= np.uint64(size)
                    bits -= np.uint64(size)
                predicted[c] += level
                if inside:
                    step = scaled[c]
                    j = (column - left) * sampling[c, 0] + sub_column[b]
                    start = np.uint64(base[c] + (sub_row[b] * groups[c] + j // LANES) * (PLANE // 2) + _LANE[j % LANES])
                    values[start] = np.int16(predicted[c] * step[0])
                    k = 1
                    while k < 64:
                        if bits < np.uint64(32):
                            buffer |= load_64(position) >> bits
                            position += np.int64((np.uint64(63) - bits) >> np.uint64(3))
                            bits |= np.uint64(56)
                        entry = np.int64(ac[buffer >> look])
                        if entry & 64 or entry == 0:
                            if entry == 0:
                                used, skip, size = _long(
                                    ac, np.int64(buffer >> np.uint64(48)), False, tables[header[9 + 5 * c]]
                                )
                                if used == 0:
                                    return BAD
                            else:
                                used, skip, size = entry & 63, (entry >> 8) & 127, entry >> 16
                            buffer <<= np.uint64(used)
                            level = 0
                            if size:
                                level = np.int64(buffer >> np.uint64(64 - size))
                                if level < 1 << (size - 1):
                                    level += 1 - (1 << size)
                                buffer <<= np.uint64(size)
                            bits -= np.uint64(used + size)
                            k += skip
                        else:
                            used = entry & 63
                            buffer <<= np.uint64(used)
                            bits -= np.uint64(used)
                            k += (entry >> 8) & 127
                            level = entry >> 16
                        if level != 0:
                            if k > 63:
                                return BAD
                            values[start + np.uint64(PLACES[np.uint64(k)])] = np.int16(level * step[np.uint64(k)])
                        k += 1
                else:
                    k = 1
                    while k < 64:
                        if bits < np.uint64(32):
                            buffer |= load_64(position) >> bits
                            position += np.int64((np.uint64(63) - bits) >> np.uint64(3))
                            bits |= np.uint64(56)
                        entry = np.int64(ac[buffer >> look])
                        if entry & 64 or entry == 0:
                            if entry == 0:
                                used, skip, size = _long(
                                    ac, np.int64(buffer >> np.uint64(48)), False, tables[header[9 + 5 * c]]
                                )
                                if used == 0:
                                    return BAD
                            else:
                                used, skip, size = entry & 63, (entry >> 8) & 127, entry >> 16
                            used += size
                            k += skip + 1
                            buffer <<= np.uint64(used)
                            bits -= np.uint64(used)
                        else:
                            used = entry & 63
                            buffer <<= np.uint64(used)
                            bits -= np.uint64(used)
                            k += ((entry >> 8) & 127) + 1
            if 8 * (position - limit) > np.int64(bits):
                return BAD  # more was read than there is
        if inside_row:
            _rows(coefficients, address, count, sampling, wide, groups, strides, base, row - top, work)
    return GOOD


def workspace(wide: int, sampling: tuple[tuple[int, int], ...], size: int) -> int:
    """Bytes that :func:`decode` needs beside the planes, for so many units across of a file of ``size`` bytes."""
    groups = sum(v * -(-wide * h // LANES) for h, v in sampling)
    return PLANE * (1 + groups) + 8 * TABLE_WORDS * 4 + size + SPARE + 64


def row_bytes(wide: int, horizontal: int) -> int:
    """Bytes of a plane's row: so many units of ``horizontal`` blocks, rounded up to whole groups."""
    return -(-wide * horizontal // LANES) * ROW


def _entry(version: int) -> Callable[..., int]:
    """What Python calls.

    ``version`` tells the sources that the kernel is made of: numba itself watches this file only, but what functions
    close over is a part of its cache's key, too.
    """

    def decode(data, end, header, tables, steps, place, planes, workspace):
        found = _decode(data, end, header, tables, steps, place, planes, workspace)
        return found if version >= 0 else BAD

    number, row, matrix = types.int64, types.int64[::1], types.int64[:, ::1]
    return compiled(decode, (number, number, row, types.uint8[:, ::1], types.uint16[:, ::1], row, matrix, number))


_sources = b"".join(Path(inspect.getfile(module)).read_bytes() for module in (cpu_blocks, jpeg_tables, vectors))
decode = _entry(int.from_bytes(hashlib.sha256(_sources).digest()[:4], "little"))
