"""The order of samples, and crops, as loops (numba): what :mod:`kdstream.stream.kernels` calls.

Importing this module compiles them or reads them from numba's cache on disk. They are functions of a module, not of a
function: numba names what is kept of the latter by the objects around it, which no other process would find.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from kdstream.jpeg.compiled import compiled

_u64, _i64 = np.uint64, np.int64
_GAMMA, _ONE, _TWO = _u64(0x9E3779B97F4A7C15), _u64(0xBF58476D1CE4E5B9), _u64(0x94D049BB133111EB)
_LOW = _u64((1 << 62) - 1)

_inner = njit(error_model="numpy", nogil=True)


@_inner
def _mix(value):  # kdstream.rng.mix
    value = value + _GAMMA
    value = (value ^ (value >> _u64(30))) * _ONE
    value = (value ^ (value >> _u64(27))) * _TWO
    return value ^ (value >> _u64(31))


@_inner
def _uniform(stream, number):  # kdstream.rng.uniform
    return np.float32(_mix(stream ^ _mix(_u64(number))) >> _u64(40)) * np.float32(2.0**-24)


def _permute(values, size, key, rounds):
    a = _u64(1)
    while a * a < _u64(size):
        a += _u64(1)
    b = (_u64(size) + a - _u64(1)) // a
    for i in range(len(values)):
        value = values[i]
        while True:
            row, column = value // b, value % b
            for turn in range(rounds):
                if turn % 2 == 0:
                    row = (row + (_mix(_mix(column ^ key) + _u64(turn)) & _LOW)) % a
                else:
                    column = (column + (_mix(_mix(row ^ key) + _u64(turn)) & _LOW)) % b
            value = row * b + column
            if value < _u64(size):
                break
        values[i] = value
    return 0


@_inner
def _fold(position, length):  # kdstream.stream.augment._fold
    if length == 1:
        return _i64(0)
    position = position % (2 * (length - 1))
    return position if position < length else 2 * (length - 1) - position


def _crop(images, shape, keys, salt, pad, reflect, flip, result):
    # Flat arrays and unsigned positions: numba asks of every signed one whether it counts from the end.
    count, planes, height, width = shape
    columns = np.empty(width, np.uint64)
    for n in range(count):
        stream = _mix(keys[n] ^ _u64(salt))
        top = _i64(_uniform(stream, 0) * np.float32(2 * pad + 1)) - pad
        left = _i64(_uniform(stream, 1) * np.float32(2 * pad + 1)) - pad
        mirrored = flip and _uniform(stream, 2) < np.float32(0.5)
        if reflect:
            for x in range(width):
                columns[x] = _fold(left + (width - 1 - x if mirrored else x), width)
        inside = max(0, width - abs(left))  # columns that are not padding
        begin = min(max(0, left if mirrored else -left), width)
        from_left = _u64(left + width - 1 - begin if mirrored else left + begin)
        for plane in range(planes):
            image = (n * planes + plane) * height
            for y in range(height):
                row = _fold(top + y, height) if reflect else top + y
                source, target = _u64((image + row) * width), _u64((image + y) * width)
                if reflect:
                    for x in range(width):
                        result[target + _u64(x)] = images[source + columns[_u64(x)]]
                elif row < 0 or row >= height:
                    for x in range(width):
                        result[target + _u64(x)] = 0
                else:
                    for x in range(begin):
                        result[target + _u64(x)] = 0
                    target, source = target + _u64(begin), source + from_left
                    if mirrored:
                        for x in range(inside):
                            result[target + _u64(x)] = images[source - _u64(x)]
                    else:
                        for x in range(inside):
                            result[target + _u64(x)] = images[source + _u64(x)]
                    for x in range(inside, width - begin):
                        result[target + _u64(x)] = 0
    return 0


permute = compiled(_permute, (types.uint64[::1], types.int64, types.uint64, types.int64))
_SHAPE, _HOW = types.UniTuple(types.int64, 4), (types.int64, types.int64, types.boolean, types.boolean)
crop = compiled(_crop, (types.uint8[::1], _SHAPE, types.uint64[::1], *_HOW, types.uint8[::1]))
