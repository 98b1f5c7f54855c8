"""Antialiased resizing of planes to a square view (numba), in whole numbers: the same pixels on every machine.

Importing this module compiles the kernel or reads it from numba's cache on disk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kdstream.jpeg.compiled import compiled

BILINEAR, BICUBIC = 0, 1
WEIGHT_BITS = 14
"""The weights of a pixel are whole numbers whose sum is 2**14."""
_MORE = 6
"""Bits more than a pixel's 8 that are kept between the two passes; 4 of them go on to the colours."""

_inner = njit(error_model="numpy", nogil=True)


@_inner
def _value(kind, x):
    """The filter at x: a triangle, or the cubic of Keys (1981) with a = -1/2, as Pillow has them."""
    x = abs(x)
    if kind == BILINEAR:
        return max(0.0, 1.0 - x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return 0.0


@_inner
def _weights(begin, length, kind, halved, whole, starts, counts, table):
    """What each pixel of the view is made of, along one side.

    Args:
        begin, length: of the box, in pixels of the image; none outside of it counts.
        kind: BILINEAR or BICUBIC.
        halved: the plane has one sample for two pixels. Its weights are then those of the pixels that libjpeg makes of
            it: three quarters of the sample that a pixel lies in, one quarter of the nearer neighbour.
        whole: samples of the plane.
        starts, counts: int64 [S], filled: the first sample of each pixel and how many there are.
        table: int16 [S,K], filled: their weights.
    """
    size = len(starts)
    scale = length / size
    wide = max(scale, 1.0)
    support = wide * (1.0 if kind == BILINEAR else 2.0)
    exact = np.empty(table.shape[1], np.float64)
    for i in range(size):
        center = (i + 0.5) * scale
        first = min(max(np.int64(np.floor(center - support + 0.5)), 0), length - 1)
        last = max(min(np.int64(np.floor(center + support + 0.5)), length), first + 1)
        start, count = begin + first, last - first
        if halved:
            start = max((begin + first) // 2 - 1, 0)
            count = min((begin + last - 1) // 2 + 1, whole - 1) + 1 - start
        exact[:count] = 0.0
        total = 0.0
        for j in range(first, last):
            share = _value(kind, (j + 0.5 - center) / wide)
            total += share
            if halved:
                here = (begin + j) // 2
                beside = here - 1 if (begin + j) % 2 == 0 else here + 1
                exact[here - start] += 0.75 * share
                exact[min(max(beside, 0), whole - 1) - start] += 0.25 * share
            else:
                exact[j - first] = share
        left, best = np.int64(1 << WEIGHT_BITS), 0
        for k in range(count):
            rounded = np.int64(np.floor(exact[k] / total * (1 << WEIGHT_BITS) + 0.5))
            table[i, k] = rounded
            left -= rounded
            if rounded > table[i, best]:
                best = k
        table[i, best] += left
        starts[i], counts[i] = start, count


@_inner
def _rows(source, first, begin, end, starts, counts, table, line, target):
    """Vertical pass: columns ``begin`` to ``end`` of uint8 [h,w], whose row 0 is number ``first`` -> int16 [S,w]."""
    width = end - begin
    half = np.int32(1 << (WEIGHT_BITS - _MORE - 1))
    shift = np.int32(WEIGHT_BITS - _MORE)
    for y in range(len(starts)):
        n, row = counts[y], starts[y] - first
        out = target[y]
        a, p = source[row][begin:end], np.int32(table[y, 0])
        if n == 1:
            for x in range(width):
                out[x] = np.int16(np.int32(a[x]) << np.int32(_MORE))
        elif n == 2:
            b, q = source[row + 1][begin:end], np.int32(table[y, 1])
            for x in range(width):
                out[x] = np.int16((p * np.int32(a[x]) + q * np.int32(b[x]) + half) >> shift)
        else:
            b, q = source[row + 1][begin:end], np.int32(table[y, 1])
            c, r = source[row + 2][begin:end], np.int32(table[y, 2])
            if n == 3:
                for x in range(width):
                    out[x] = np.int16((p * np.int32(a[x]) + q * np.int32(b[x]) + r * np.int32(c[x]) + half) >> shift)
            else:
                for x in range(width):
                    line[x] = p * np.int32(a[x]) + q * np.int32(b[x]) + r * np.int32(c[x]) + half
                for k in range(3, n):
                    a, p = source[row + k][begin:end], np.int32(table[y, k])
                    for x in range(width):
                        line[x] += p * np.int32(a[x])
                for x in range(width):
                    out[x] = np.int16(line[x] >> shift)


@_inner
def _columns(source, first, starts, counts, table, line, target):
    """Horizontal pass over transposed rows: int16 [w,S], its first number ``first`` -> int16 [S,S], x before y."""
    height = source.shape[1]
    half = np.int32(1 << (WEIGHT_BITS + 1))
    shift = np.int32(WEIGHT_BITS + 2)
    for x in range(len(starts)):
        n, begin = counts[x], starts[x] - first
        out = target[x]
        a, p = source[begin], np.int32(table[x, 0])
        for y in range(height):
            line[y] = p * np.int32(a[y]) + half
        k = 1
        while k + 1 < n:
            a, b, p, q = source[begin + k], source[begin + k + 1], np.int32(table[x, k]), np.int32(table[x, k + 1])
            for y in range(height):
                line[y] += p * np.int32(a[y]) + q * np.int32(b[y])
            k += 2
        if k < n:
            a, p = source[begin + k], np.int32(table[x, k])
            for y in range(height):
                line[y] += p * np.int32(a[y])
        for y in range(height):
            out[y] = np.int16(line[y] >> shift)


def _turned_tile(typing_context, source, source_row, target, target_row):

    def generate(context, builder, signature, values):
        source, source_row, target, target_row = values
        kind = ir.VectorType(ir.IntType(16), 8)

        def at(address, step, i):
            place = builder.add(address, builder.mul(step, ir.Constant(step.type, i)))
            return builder.inttoptr(place, kind.as_pointer())

        rows = [builder.load(at(source, source_row, i), align=2) for i in range(8)]
        halves = [[i // 2 + 8 * (i % 2) + first for i in range(8)] for first in (0, 4)]
        picks = [ir.Constant(ir.VectorType(ir.IntType(32), 8), half) for half in halves]
        for _ in range(3):  # three perfect shuffles of the rows transpose them
            rows = [builder.shuffle_vector(rows[i // 2], rows[i // 2 + 4], picks[i % 2]) for i in range(8)]
        for i, row in enumerate(rows):
            builder.store(row, at(target, target_row, i), align=2)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


_turn_tile: Any = intrinsic(_turned_tile)
"""Transpose 8x8 numbers of 16 bits: (address, bytes of a row) of the source, then of the target."""


@_inner
def _transposed(source, target):
    """int16 [h,w] -> [w,h], both contiguous."""
    height, width = source.shape
    for top in range(0, height - 7, 8):
        for left in range(0, width - 7, 8):
            _turn_tile(
                np.int64(source.ctypes.data) + 2 * (top * width + left),
                2 * width,
                np.int64(target.ctypes.data) + 2 * (left * height + top),
                2 * height,
            )
        for x in range(width - width % 8, width):
            for y in range(top, top + 8):
                target[x, y] = source[y, x]
    for y in range(height - height % 8, height):
        for x in range(width):
            target[x, y] = source[y, x]


@_inner
def _limited(value):
    return np.uint8(min(max(value, 0), 255))


@_inner
def _colours(luma, blue, red):
    """Y, Cb, Cr -> red, green, blue in their place, all with 4 fraction bits; JFIF's weights (ITU-R BT.601)."""
    for y in range(len(luma)):
        light = (np.int32(luma[y]) << np.int32(14)) + np.int32(1 << 13)
        b, r = np.int32(blue[y]) - np.int32(2048), np.int32(red[y]) - np.int32(2048)
        luma[y] = np.int16((light + np.int32(22970) * r) >> np.int32(14))
        blue[y] = np.int16((light - np.int32(5638) * b - np.int32(11700) * r) >> np.int32(14))
        red[y] = np.int16((light + np.int32(29032) * b) >> np.int32(14))


def _cut(first, second, third, box, parts, kind, is_ycc, mirrored, view):
    """Resize a box of one plane (grey) or three.

    Args:
        first, second, third: uint8 [h,w], the planes, or what there is of them; of grey the first counts.
        box: int64 [4]: top, left, height, width, in pixels of the image.
        parts: int64 [C,6]: row and column of the whole plane at which what is given begins, height and width of the
            whole plane, pixels of the image for each of its samples down and across.
        kind: BILINEAR or BICUBIC.
        is_ycc: the planes are Y, Cb and Cr, which become red, green and blue.
        mirrored: left and right are exchanged.
        view: uint8 [3,S,S], filled.
    """
    size, planes = view.shape[1], len(parts)
    grey = planes == 1
    made = np.empty((planes, size, size), np.int16)
    starts, counts = np.empty((2, size), np.int64), np.empty((2, size), np.int64)
    reach = max(max(box[2], box[3]) / size, 1.0) * (1.0 if kind == BILINEAR else 2.0)
    tables = np.empty((2, size, 2 * np.int64(np.ceil(reach)) + 6), np.int16)
    for c in range(planes):
        plane = first if c == 0 else second if c == 1 else third
        if c == 0 or (c == 1 and parts[1, 4] + parts[1, 5] > 2):  # else the same as for the plane before
            _weights(box[0], box[2], kind, parts[c, 4] == 2, parts[c, 2], starts[0], counts[0], tables[0])
            _weights(box[1], box[3], kind, parts[c, 5] == 2, parts[c, 3], starts[1], counts[1], tables[1])
        begin, end = starts[1, 0], starts[1, size - 1] + counts[1, size - 1]
        across, column = end - begin, parts[c, 1]
        between, turned = np.empty((size, across), np.int16), np.empty((across, size), np.int16)
        line = np.empty(max(across, size), np.int32)
        _rows(plane, parts[c, 0], begin - column, end - column, starts[0], counts[0], tables[0], line, between)
        _transposed(between, turned)
        _columns(turned, begin, starts[1], counts[1], tables[1], line, made[c])
    if is_ycc and not grey:
        for x in range(size):
            _colours(made[0, x], made[1, x], made[2, x])
    turned = np.empty((size, size), np.int16)
    for c in range(planes):
        _transposed(made[c], turned)
        for y in range(size):
            row, out = turned[y], view[c, y]
            if mirrored:
                for x in range(size):
                    out[x] = _limited((row[size - 1 - x] + 8) >> 4)
            else:
                for x in range(size):
                    out[x] = _limited((row[x] + 8) >> 4)
    if grey:
        view[1], view[2] = view[0], view[0]
    return 0


_PLANE, _FLAG = types.Array(types.uint8, 2, "C", readonly=True), types.boolean
_PLACES = (types.int64[::1], types.int64[:, ::1])
cut = compiled(_cut, (_PLANE, _PLANE, _PLANE, *_PLACES, types.int64, _FLAG, _FLAG, types.uint8[:, :, ::1]))
