"""Loops on the processor, made by numba, for what torch has no fast form of: the order of samples, and crops.

Each equals its plain form in torch bit for bit (:func:`kdstream.stream.plan.permute`,
:func:`kdstream.stream.augment.gathered`), which serves where numba is missing, and on accelerators.
"""

from __future__ import annotations

import functools
import pickle
import zlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdstream.jpeg.cpu import available


def permuted(position: Tensor, size: int, key: int, rounds: int) -> Tensor | None:
    """As :func:`kdstream.stream.plan.permute`.

    Args:
        position: int64 [N] in main memory, each in 0..size-1.
        size, key: as there.
        rounds: of the Feistel network.

    Returns:
        int64 [N]; None where there is no kernel.
    """
    if not available():
        return None
    value = position.contiguous().clone()
    _compiled().permute(value.numpy().view(np.uint64), size, key & ((1 << 64) - 1), rounds)
    return value


def crop_flip(images: Tensor, key: Tensor, salt: str, pad: int, reflect: bool, flip: bool) -> Tensor | None:
    """Each image padded, cropped to its own size and perhaps mirrored, as its key says.

    Args:
        images: uint8 [N,M,H,W], contiguous, in main memory; all M planes are treated alike.
        key: int64 [N].
        salt: of the three draws of :func:`kdstream.rng.uniform`: row, column, mirror.
        pad: pixels on every side.
        reflect: pad by reflection, not by zeros.
        flip: mirror where the third draw is below 1/2.

    Returns:
        Of the same shape; None for other images, and where there is no kernel.
    """
    on_processor = images.device.type == "cpu" and key.device.type == "cpu"
    if not on_processor or images.dtype != torch.uint8 or not images.is_contiguous() or not available():
        return None
    result = torch.empty_like(images)
    bits = key.contiguous().numpy().view(np.uint64)
    arrays = images.flatten().numpy(), result.flatten().numpy()
    _compiled().crop(arrays[0], tuple(images.shape), bits, zlib.crc32(salt.encode()), pad, reflect, flip, arrays[1])
    return result


@functools.cache
def _compiled() -> SimpleNamespace:
    """The loops, compiled (some seconds) or read from numba's cache on disk."""
    import numba  # takes long
    from numba import types

    u64, i64 = np.uint64, np.int64
    gamma, one, two = u64(0x9E3779B97F4A7C15), u64(0xBF58476D1CE4E5B9), u64(0x94D049BB133111EB)
    low = u64((1 << 62) - 1)

    @numba.njit(error_model="numpy", nogil=True)
    def mix(value):  # kdstream.rng.mix
        value = value + gamma
        value = (value ^ (value >> u64(30))) * one
        value = (value ^ (value >> u64(27))) * two
        return value ^ (value >> u64(31))

    @numba.njit(error_model="numpy", nogil=True)
    def uniform(stream, number):  # kdstream.rng.uniform
        return np.float32(mix(stream ^ mix(u64(number))) >> u64(40)) * np.float32(2.0**-24)

    def permute(values, size, key, rounds):
        a = u64(1)
        while a * a < u64(size):
            a += u64(1)
        b = (u64(size) + a - u64(1)) // a
        for i in range(len(values)):
            value = values[i]
            while True:
                row, column = value // b, value % b
                for turn in range(rounds):
                    if turn % 2 == 0:
                        row = (row + (mix(mix(column ^ key) + u64(turn)) & low)) % a
                    else:
                        column = (column + (mix(mix(row ^ key) + u64(turn)) & low)) % b
                value = row * b + column
                if value < u64(size):
                    break
            values[i] = value

    @numba.njit(error_model="numpy", nogil=True)
    def fold(position, length):  # kdstream.stream.augment._fold
        if length == 1:
            return i64(0)
        position = position % (2 * (length - 1))
        return position if position < length else 2 * (length - 1) - position

    def crop(images, shape, keys, salt, pad, reflect, flip, result):
        # Flat arrays and unsigned positions: numba asks of every signed one whether it counts from the end.
        count, planes, height, width = shape
        columns = np.empty(width, np.uint64)
        for n in range(count):
            stream = mix(keys[n] ^ u64(salt))
            top = i64(uniform(stream, 0) * np.float32(2 * pad + 1)) - pad
            left = i64(uniform(stream, 1) * np.float32(2 * pad + 1)) - pad
            mirrored = flip and uniform(stream, 2) < np.float32(0.5)
            if reflect:
                for x in range(width):
                    columns[x] = fold(left + (width - 1 - x if mirrored else x), width)
            inside = max(0, width - abs(left))  # columns that are not padding
            begin = min(max(0, left if mirrored else -left), width)
            from_left = u64(left + width - 1 - begin if mirrored else left + begin)
            for plane in range(planes):
                image = (n * planes + plane) * height
                for y in range(height):
                    row = fold(top + y, height) if reflect else top + y
                    source, target = u64((image + row) * width), u64((image + y) * width)
                    if reflect:
                        for x in range(width):
                            result[target + u64(x)] = images[source + columns[u64(x)]]
                    elif row < 0 or row >= height:
                        for x in range(width):
                            result[target + u64(x)] = 0
                    else:
                        for x in range(begin):
                            result[target + u64(x)] = 0
                        target, source = target + u64(begin), source + from_left
                        if mirrored:
                            for x in range(inside):
                                result[target + u64(x)] = images[source - u64(x)]
                        else:
                            for x in range(inside):
                                result[target + u64(x)] = images[source + u64(x)]
                        for x in range(inside, width - begin):
                            result[target + u64(x)] = 0

    def made(function: Any, *arguments: Any) -> Any:
        try:
            return numba.njit(types.void(*arguments), error_model="numpy", nogil=True, cache=True)(function)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
            # numba finds no folder, or it is full, or a file in it is broken.
            return numba.njit(types.void(*arguments), error_model="numpy", nogil=True)(function)

    shape = types.UniTuple(types.int64, 4)
    how = (types.uint64[::1], types.int64, types.int64, types.boolean, types.boolean)
    return SimpleNamespace(
        permute=made(permute, types.uint64[::1], types.int64, types.uint64, types.int64),
        crop=made(crop, types.uint8[::1], shape, *how, types.uint8[::1]),
    )
