"""The CPU kernel's loops (numba): which blocks make a group, where their pixels come from and go to.

The arithmetic on a group is in :mod:`kdstream.jpeg.cpu_blocks`. Blocks of whole batches are numbered row by row, image
by image, and cut into groups without regard to images, so that small images fill the vectors as well.

Importing this module compiles the kernel or reads it from numba's cache on disk.
"""

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
    PAIRS_STRAIGHT,
    PLANE,
    ROW,
    STAGE,
    WORDS,
    V,
    at,
    copy_1,
    copy_8,
    copy_16,
    copy_32,
    forward_columns,
    forward_rows,
    inverse_columns,
    inverse_columns_each,
    inverse_rows_color,
    inverse_rows_plane,
    prefetch,
    row_to_rgb,
    row_to_ycc,
    set_words,
    split_color,
    split_plane,
)

TABLE = 2 * 4 * WORDS
"""Bytes of the two tables (luma, chroma) of one quality."""
TABLE_EACH = 2 * V * WORDS
"""Bytes of the two tables of a group whose blocks differ in quality."""
WORKSPACE = 3 * STAGE + 7 * PLANE + TABLE_EACH
"""Bytes a thread needs: stages, coefficients and what is between two passes, tables."""

_UPPER, _LOWER = (tuple(pair[i] for pair in PAIRS_STRAIGHT) for i in (0, 1))
_COLUMNS = tuple(column for pair in PAIRS_SPLIT for column in pair)

_inner = njit(error_model="numpy", nogil=True)


# Pixels of a group


@_inner
def _copy(source, target, size):
    """Copy bytes."""
    done = 0
    if size >= 32:
        while size - done >= 32:
            copy_32(source + done, target + done)
            done += 32
        if done < size:
            copy_32(source + size - 32, target + size - 32)
    elif size >= 16:
        copy_16(source, target)
        copy_16(source + size - 16, target + size - 16)
    elif size >= 8:
        copy_8(source, target)
        copy_8(source + size - 8, target + size - 8)
    else:
        while done < size:
            copy_1(source + done, target + done)
            done += 1


@_inner
def _copy_rows(source, source_stride, target, target_stride, rows, size):
    """Copy some rows of bytes."""
    if size == 32:
        for y in range(rows):
            copy_32(source + y * source_stride, target + y * target_stride)
    elif size == 8:
        for y in range(rows):
            copy_8(source + y * source_stride, target + y * target_stride)
    else:
        for y in range(rows):
            _copy(source + y * source_stride, target + y * target_stride, size)


@_inner
def _load(images, strides, shape, start, count, stage):
    """Blocks ``start`` to ``start + count`` of images -> stages; images are continued by their last column and row.

    Args:
        images: address of uint8 [N,C,H,W].
        strides: their 4 strides in bytes.
        shape: (C, H, W).
        stage: address of C stages.
    """
    channels, height, width = shape
    of_image, of_channel, of_row, of_column = strides
    across, down = (width + 7) // 8, (height + 7) // 8
    image, rest = start // (across * down), start % (across * down)
    block_row, block = rest // across, rest % across
    lane = 0
    while lane < count:
        run = min(across - block, count - lane)
        size = min(8 * run, width - 8 * block)
        rows = min(8, height - 8 * block_row)
        corner = images + image * of_image + 8 * block_row * of_row + 8 * block * of_column
        for channel in range(channels):
            source, target = corner + channel * of_channel, stage + channel * STAGE + 8 * lane
            if of_column == 1:
                _copy_rows(source, of_row, target, ROW, rows, size)
            else:
                for y in range(rows):
                    for x in range(size):
                        copy_1(source + y * of_row + x * of_column, target + y * ROW + x)
            if size < 8 * run:
                for y in range(rows):
                    for x in range(size, 8 * run):
                        copy_1(target + y * ROW + size - 1, target + y * ROW + x)
            for y in range(rows, 8):
                _copy(target + (rows - 1) * ROW, target + y * ROW, 8 * run)
        lane += run
        block = 0
        block_row += 1
        if block_row == down:
            block_row = 0
            image += 1


@_inner
def _store(stage, images, strides, shape, start, count):
    """The reverse of :func:`_load`, for images whose columns are neighbours in memory."""
    channels, height, width = shape
    of_image, of_channel, of_row, _ = strides
    across, down = (width + 7) // 8, (height + 7) // 8
    image, rest = start // (across * down), start % (across * down)
    block_row, block = rest // across, rest % across
    lane = 0
    while lane < count:
        run = min(across - block, count - lane)
        size = min(8 * run, width - 8 * block)
        rows = min(8, height - 8 * block_row)
        target = images + image * of_image + 8 * block_row * of_row + 8 * block
        for channel in range(channels):
            _copy_rows(stage + channel * STAGE + 8 * lane, ROW, target + channel * of_channel, of_row, rows, size)
        lane += run
        block = 0
        block_row += 1
        if block_row == down:
            block_row = 0
            image += 1


@_inner
def _expect(images, strides, shape, start, count):
    """Have the cache lines fetched that :func:`_store` will write, while there is something else to do."""
    channels, height, width = shape
    of_image, of_channel, of_row, _ = strides
    across, down = (width + 7) // 8, (height + 7) // 8
    image, rest = start // (across * down), start % (across * down)
    block_row, block = rest // across, rest % across
    lane = 0
    while lane < count:
        run = min(across - block, count - lane)
        size = min(8 * run, width - 8 * block)
        rows = min(8, height - 8 * block_row)
        target = images + image * of_image + 8 * block_row * of_row + 8 * block
        for channel in range(channels):
            if size == of_row:
                for x in range(0, size * rows, 64):
                    prefetch(target + channel * of_channel + x)
            else:
                for y in range(rows):
                    for x in range(0, size + 63, 64):
                        prefetch(target + channel * of_channel + y * of_row + min(x, size - 1))
        lane += run
        block = 0
        block_row += 1
        if block_row == down:
            block_row = 0
            image += 1


# Transforms of a group


@_inner
def _forward(samples, columns, coefficients):
    """Forward DCT of one plane: pair vectors of samples -> of coefficients, by way of ``columns`` (PLANE bytes)."""
    for i in range(4):
        forward_rows(samples + 4 * _UPPER[i] * V, samples + 4 * _LOWER[i] * V, columns + i * V)
    for i in range(8):
        forward_columns(columns + 4 * _COLUMNS[i] * V, coefficients + 4 * i * V)


@_inner
def _inverse(coefficients, table, each, rows):
    """Quantise, dequantise and the first pass of the inverse DCT for one plane."""
    if each:
        for i in range(4):
            inverse_columns_each(coefficients + 8 * i * V, table + 24 * i * V, rows + i * V)
    else:
        for i in range(4):
            inverse_columns(coefficients + 8 * i * V, table + 24 * i * 4, rows + i * V)


@_inner
def _tables(tables, qualities, offset, of_image, images, blocks, start, count, each):
    """The tables of a group of blocks.

    Args:
        tables: address of the words of all qualities.
        qualities: int64, image after image or, with ``of_image`` = 0, for all images.
        offset: index of the first image's quality.
        of_image: how many qualities each image has of its own.
        images: after how many the numbering of images starts again (planes that follow each other).
        blocks: of an image.
        start, count: blocks of the group.
        each: address for TABLE_EACH bytes.

    Returns:
        Addresses of the luma and of the chroma table, and whether they are given for each block.
    """
    first, last = start // blocks, (start + count - 1) // blocks
    quality = qualities[offset + first % images * of_image]
    same = True
    if of_image > 0:
        for image in range(first + 1, last + 1):
            same = same and qualities[offset + image % images * of_image] == quality
    if same:
        found = tables + quality * TABLE
        return found, found + 4 * WORDS, False
    for image in range(first, last + 1):
        quality = qualities[offset + image % images * of_image]
        set_words(tables + quality * TABLE, each, max(image * blocks - start, 0))
    return each, each + V * WORDS, True


# Grey images and 4:4:4: from pixels to pixels, group by group


@_inner
def _full(images, strides, result, shape, qualities, of_image, count, tables, workspace, first, last):
    """Round trip of the groups ``first`` to ``last`` of grey or 4:4:4 images.

    Args:
        images: address of uint8 [N,C,H,W].
        strides: their 4 strides in bytes.
        result: address of uint8 [N,Q,C,H,W], contiguous.
        shape: (N, C, H, W).
        qualities: address of int64 [Q] or [N,Q].
        of_image: 0 or Q: how far the qualities of two images are apart.
        count: Q.
        tables: address of :func:`kdstream.jpeg.cpu_blocks.quantisation_words`.
        workspace: address of WORKSPACE bytes.
        first, last: groups of LANES blocks, of ceil(N * ceil(H/8) * ceil(W/8) / LANES).
    """
    number, channels, height, width = shape
    given = numba.carray(at(qualities), (max(number * of_image, count),), np.int64)
    blocks = ((width + 7) // 8) * ((height + 7) // 8)
    a_plane = height * width
    result_strides = (count * channels * a_plane, a_plane, width, 1)
    size = (channels, height, width)
    stage, coefficients = workspace, workspace + 3 * STAGE
    rows, each = coefficients + 3 * PLANE, coefficients + 7 * PLANE
    for group in range(first, last):
        start = group * LANES
        filled = min(LANES, number * blocks - start)
        _load(images, strides, size, start, filled, stage)
        for y in range(8):
            if channels == 1:
                split_plane(stage + y * ROW, rows + 4 * y * V)
            else:
                split_color(stage + y * ROW, rows + 4 * y * V)
        for plane in range(channels):
            _forward(rows + plane * PLANE, rows + 3 * PLANE, coefficients + plane * PLANE)
        for q in range(count):
            _expect(result + q * channels * a_plane, result_strides, size, start, filled)
            luma, chroma, differ = _tables(tables, given, q, of_image, number, blocks, start, filled, each)
            for plane in range(channels):
                table = luma if plane == 0 else chroma
                _inverse(coefficients + plane * PLANE, table, differ, rows + plane * PLANE)
            for y in range(8):
                if channels == 1:
                    inverse_rows_plane(rows + 4 * y * V, stage + y * ROW)
                else:
                    inverse_rows_color(rows + 4 * y * V, stage + y * ROW)
            _store(stage, result + q * channels * a_plane, result_strides, size, start, filled)


# 4:2:0: by way of whole planes, because chroma needs its neighbours


@_inner
def _bytes(address, size):
    """uint8 [size] at an address."""
    return numba.carray(at(address), (size,), np.uint8)


@_inner
def _repeat_last(row, start):
    """Fill a row from ``start`` on with what is before."""
    for x in range(start, len(row)):
        row[x] = row[start - 1]


@_inner
def _halve(upper, lower, half):
    """Means of 2x2 samples, halves rounded down and up in turn."""
    for x in range(len(half) // 2):
        # An even number of them: rows end with a whole block.
        even = np.int32(upper[4 * x]) + upper[4 * x + 1] + lower[4 * x] + lower[4 * x + 1]
        odd = np.int32(upper[4 * x + 2]) + upper[4 * x + 3] + lower[4 * x + 2] + lower[4 * x + 3]
        half[2 * x] = (even + 1) >> 2
        half[2 * x + 1] = (odd + 2) >> 2


@_inner
def _double(near, far, sums, full):
    """Triangle filter: two rows of chroma uint8 [w], the nearer first -> one row of uint8 [2w].

    ``sums`` is int16 [w]. Rows of 1 or 2 samples are not filtered: libjpeg repeats them.
    """
    last = len(near) - 1
    if last < 2:
        for x in range(len(near)):
            full[2 * x] = full[2 * x + 1] = near[x]
        return
    for x in range(len(near)):
        sums[x] = 3 * np.int32(near[x]) + far[x]
    full[0] = (4 * np.int32(sums[0]) + 8) >> 4
    for x in range(last):
        here, after = np.int32(sums[x]), np.int32(sums[x + 1])
        full[2 * x + 1] = (3 * here + after + 7) >> 4
        full[2 * x + 2] = (3 * after + here + 8) >> 4
    full[2 * last + 1] = (4 * np.int32(sums[last]) + 7) >> 4


@_inner
def _planes(images, strides, shape, number, top, bottom, first_row, last_row, luma, chroma, line):
    """Pixels -> planes of Y (rows ``top`` to ``bottom``) and of halved Cb and Cr (``first_row`` to ``last_row``).

    All planes are continued to whole blocks. Cb's planes of all images come first, then those of Cr.

    Args:
        images: address of the first image.
        strides, shape: as in :func:`_full`.
        number: how many images.
        luma, chroma: addresses of the planes.
        line: address of 8 rows of width, rounded up to whole vectors.
    """
    _, _, height, width = shape
    of_image, of_channel, of_row, of_column = strides
    luma_width, chroma_width = _up(width, 8), _up(width, 16) // 2
    luma_rows, chroma_rows = _up(bottom - top, 8), last_row - first_row
    size, padded = _up(width, V), 2 * chroma_width
    end = (height + 1) // 2
    for image in range(number):
        for row in range(first_row, last_row):
            place = chroma + (image * chroma_rows + row - first_row) * chroma_width
            skip = number * chroma_rows * chroma_width
            if row >= end:
                _copy(place - chroma_width, place, chroma_width)
                _copy(place + skip - chroma_width, place + skip, chroma_width)
                continue
            for i in range(2):
                y = min(2 * row + i, height - 1)
                for channel in range(3):
                    source = images + image * of_image + channel * of_channel + y * of_row
                    if of_column == 1:
                        _copy(source, line + channel * size, width)
                    else:
                        for x in range(width):
                            copy_1(source + x * of_column, line + channel * size + x)
                luma_line, cb, cr = line + 3 * size, line + (4 + i) * size, line + (6 + i) * size
                for x in range(0, width, V):
                    pixels = line + x
                    row_to_ycc(pixels, pixels + size, pixels + 2 * size, luma_line + x, cb + x, cr + x)
                _repeat_last(_bytes(cb, padded), width)
                _repeat_last(_bytes(cr, padded), width)
                if top <= y < bottom:
                    target = luma + (image * luma_rows + y - top) * luma_width
                    _copy(luma_line, target, width)
                    _repeat_last(_bytes(target, luma_width), width)
            for i in range(2):
                upper = line + (4 + 2 * i) * size
                _halve(_bytes(upper, padded), _bytes(upper + size, padded), _bytes(place + i * skip, chroma_width))
        for y in range(bottom - top, luma_rows):
            target = luma + (image * luma_rows + y) * luma_width
            _copy(target - luma_width, target, luma_width)


@_inner
def _pixels(luma, chroma, result, strides, shape, number, top, bottom, first_row, last_row, line):
    """The reverse of :func:`_planes`: upsampling and colour conversion."""
    _, _, height, width = shape
    of_image, of_channel, of_row, _ = strides
    luma_width, chroma_width = _up(width, 8), _up(width, 16) // 2
    luma_rows, chroma_rows = _up(bottom - top, 8), last_row - first_row
    skip = number * chroma_rows * chroma_width
    size = _up(width, V)
    columns, end = (width + 1) // 2, (height + 1) // 2
    sums = numba.carray(at(line + 5 * size), (columns,), np.int16)
    for image in range(number):
        for y in range(top, bottom):
            near = y // 2
            far = min(max(near - 1 + 2 * (y % 2), 0), end - 1)
            base = chroma + (image * chroma_rows - first_row) * chroma_width
            for i in range(2):
                _double(
                    _bytes(base + i * skip + near * chroma_width, columns),
                    _bytes(base + i * skip + far * chroma_width, columns),
                    sums,
                    _bytes(line + i * size, 2 * columns),
                )
            target = result + image * of_image + y * of_row
            brightness = luma + (image * luma_rows + y - top) * luma_width
            for x in range(0, width, V):
                pixels = line + 2 * size + x
                row_to_rgb(brightness + x, line + x, line + size + x, pixels, pixels + size, pixels + 2 * size)
            for channel in range(3):
                _copy(line + (2 + channel) * size, target + channel * of_channel, width)


@_inner
def _forward_planes(planes, number, height, width, stage, work, coefficients):
    """Forward DCT of planes of whole blocks, uint8 [number,height,width] -> coefficients, group after group."""
    strides, shape = (height * width, 0, width, 1), (1, height, width)
    total = number * (height // 8) * (width // 8)
    for start in range(0, total, LANES):
        _load(planes, strides, shape, start, min(LANES, total - start), stage)
        for y in range(8):
            split_plane(stage + y * ROW, work + 4 * y * V)
        _forward(work, work + PLANE, coefficients + start // LANES * PLANE)


@_inner
def _up(value, multiple):
    """A value rounded up to a multiple."""
    return -(-value // multiple) * multiple


@_inner
def _halved(images, strides, result, shape, qualities, of_image, count, tables, workspace, many, band, first, last):
    """Round trip of the pieces ``first`` to ``last`` of 4:2:0 colour images.

    Args:
        images, strides, result, shape, qualities, of_image, count, tables: as in :func:`_full`.
        workspace: address of as many bytes as :func:`halved_workspace` says.
        many: images of a piece.
        band: rows of a piece, in units of 16. If images have several bands, ``many`` is 1.
        first, last: pieces, of ceil(N / many) * ceil(H / 16 / band).
    """
    number, _, height, width = shape
    given = numba.carray(at(qualities), (max(number * of_image, count),), np.int64)
    units = (height + 15) // 16
    bands = -(-units // band)
    a_plane = height * width
    result_strides = (count * 3 * a_plane, a_plane, width, 1)
    luma_width, chroma_width = _up(width, 8), _up(width, 16) // 2
    for piece in range(first, last):
        image, top = piece // bands * many, piece % bands * band * 16
        here, bottom = min(many, number - image), min(height, top + 16 * band)
        # One more row of chroma blocks on both sides: its outermost row of samples is needed.
        first_row, last_row = max(0, top // 2 - 8), min(8 * units, _up(bottom, 16) // 2 + 8)
        luma_rows, chroma_rows = _up(bottom - top, 8), last_row - first_row
        luma_total = here * (luma_rows // 8) * (luma_width // 8)
        chroma_total = here * (chroma_rows // 8) * (chroma_width // 8)

        stage = workspace
        work = stage + STAGE
        each = work + 2 * PLANE
        luma_coefficients = each + TABLE_EACH
        chroma_coefficients = luma_coefficients + _up(luma_total, LANES) // LANES * PLANE
        luma = chroma_coefficients + _up(2 * chroma_total, LANES) // LANES * PLANE
        chroma = luma + 64 * luma_total
        line = _up(chroma + 128 * chroma_total, 64)

        _planes(images + image * strides[0], strides, shape, here, top, bottom, first_row, last_row, luma, chroma, line)
        _forward_planes(luma, here, luma_rows, luma_width, stage, work, luma_coefficients)
        _forward_planes(chroma, 2 * here, chroma_rows, chroma_width, stage, work, chroma_coefficients)
        for q in range(count):
            for is_chroma in range(2):
                total = 2 * chroma_total if is_chroma else luma_total
                blocks = total // (here * (1 + is_chroma))
                plane_rows, plane_width = (chroma_rows, chroma_width) if is_chroma else (luma_rows, luma_width)
                coefficients = chroma_coefficients if is_chroma else luma_coefficients
                for start in range(0, total, LANES):
                    filled = min(LANES, total - start)
                    of_luma, of_chroma, differ = _tables(
                        tables, given, image * of_image + q, of_image, here, blocks, start, filled, each
                    )
                    table = of_chroma if is_chroma else of_luma
                    _inverse(coefficients + start // LANES * PLANE, table, differ, work)
                    for y in range(8):
                        inverse_rows_plane(work + 4 * y * V, stage + y * ROW)
                    _store(
                        stage,
                        chroma if is_chroma else luma,
                        (plane_rows * plane_width, 0, plane_width, 1),
                        (1, plane_rows, plane_width),
                        start,
                        filled,
                    )
            target = result + q * 3 * a_plane + image * result_strides[0]
            _pixels(luma, chroma, target, result_strides, shape, here, top, bottom, first_row, last_row, line)


def halved_workspace(width: int, many: int, band: int) -> int:
    """Bytes of workspace that :func:`roundtrip_halved` needs: for images of a width, and its ``many`` and ``band``."""
    luma, chroma = many * 2 * band * -(-width // 8), 2 * many * (band + 2) * -(-width // 16)
    groups = -(-luma // LANES) + -(-chroma // LANES)
    fixed = STAGE + 2 * PLANE + TABLE_EACH + 64
    return fixed + groups * PLANE + 64 * (luma + chroma) + 8 * -(-width // V) * V


# Compiled and cached

_INT, _FOUR = types.int64, types.UniTuple(types.int64, 4)
_COMMON = (_INT, _FOUR, _INT, _FOUR, _INT, _INT, _INT, _INT, _INT)


def _entries(version: int) -> tuple[Callable, Callable]:
    """What Python calls.

    ``version`` tells the sources that the kernel is made of: numba itself watches this file only, but what functions
    close over is a part of its cache's key, too.
    """

    def full(images, strides, result, shape, qualities, of_image, count, tables, workspace, first, last):
        _full(images, strides, result, shape, qualities, of_image, count, tables, workspace, first, last)
        return version

    def halved(images, strides, result, shape, qualities, of_image, count, tables, workspace, many, band, first, last):
        _halved(images, strides, result, shape, qualities, of_image, count, tables, workspace, many, band, first, last)
        return version

    return compiled(full, (*_COMMON, _INT, _INT)), compiled(halved, (*_COMMON, _INT, _INT, _INT, _INT))


_sources = b"".join(Path(inspect.getfile(module)).read_bytes() for module in (cpu_blocks, jpeg_tables, vectors))
roundtrip_full, roundtrip_halved = _entries(int.from_bytes(hashlib.sha256(_sources).digest()[:4], "little"))
