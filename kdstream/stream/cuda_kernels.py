"""The Triton kernel of ``crop_flip``: what :func:`kdstream.stream.kernels.crop_flip` does, on a GPU, in one launch.

In torch's own operations (:func:`kdstream.stream.augment.gathered`) the draws and the gather are some sixty launches,
which take longer than a step of a small network. This module imports Triton: import it where it is needed.
"""

from __future__ import annotations

import contextlib
import zlib

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 1024
"""Pixels of a program."""


@triton.jit
def _mix(value):
    """kdstream.rng.mix, of unsigned 64-bit integers."""
    value = value + tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    value = (value ^ (value >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    value = (value ^ (value >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
    return value ^ (value >> 31)


@triton.jit
def _uniform(stream, number: tl.constexpr):
    """kdstream.rng.uniform: draw ``number`` of a sample."""
    word = _mix(stream ^ _mix(tl.full((), number, tl.uint64)))
    return (word >> 40).to(tl.float32) * (1.0 / 16777216)


@triton.jit
def _fold(position, length):
    """kdstream.stream.augment._fold, for a length of more than 1; the remainder of Triton has the dividend's sign."""
    period = 2 * (length - 1)
    position = (position % period + period) % period
    return tl.where(position < length, position, period - position)


@triton.jit(do_not_specialize=["plane_count", "height", "width"])
def crop_kernel(
    images,
    keys,
    result,
    plane_count,
    height,
    width,
    SALT: tl.constexpr,
    PAD: tl.constexpr,
    REFLECT: tl.constexpr,
    FLIP: tl.constexpr,
    TILE: tl.constexpr,
):
    """A tile of one image [M,H,W]; grid (N, tiles)."""
    n = tl.program_id(0).to(tl.int64)
    stream = _mix(tl.load(keys + n).to(tl.uint64, bitcast=True) ^ tl.full((), SALT, tl.uint64))
    top = (_uniform(stream, 0) * (2 * PAD + 1)).to(tl.int32) - PAD
    left = (_uniform(stream, 1) * (2 * PAD + 1)).to(tl.int32) - PAD

    size = plane_count * height * width
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    within = at < size
    column = at % width
    row = (at // width) % height
    plane = at // (width * height)
    if FLIP:
        column = tl.where(_uniform(stream, 2) < 0.5, width - 1 - column, column)
    row += top
    column += left
    inside = within
    if REFLECT:
        row = tl.where(height > 1, _fold(row, tl.maximum(height, 2)), 0)
        column = tl.where(width > 1, _fold(column, tl.maximum(width, 2)), 0)
    else:
        inside = within & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    begin = n * size
    value = tl.load(images + begin + (plane * height + row) * width + column, mask=inside, other=0)
    tl.store(result + begin + at, value, mask=within)


def crop_flip(images: Tensor, key: Tensor, salt: str, pad: int, reflect: bool, flip: bool) -> Tensor:
    """Each image padded, cropped to its own size and perhaps mirrored, as its key says.

    Args:
        images: [N,M,H,W] of any type, on a GPU; all M planes are treated alike.
        key: int64 [N], there too.
        salt, pad, reflect, flip: see :func:`kdstream.stream.kernels.crop_flip`.

    Returns:
        Of the same shape, contiguous.
    """
    images, key = images.contiguous(), key.contiguous()
    result = torch.empty_like(images)
    count, planes, height, width = images.shape
    size = planes * height * width
    if result.numel():
        grid = (count, triton.cdiv(size, _TILE))
        options = {"SALT": zlib.crc32(salt.encode()), "PAD": pad, "REFLECT": reflect, "FLIP": flip, "TILE": _TILE}
        # Triton launches on the current GPU, which need not be that of the images.
        with torch.cuda.device(images.device) if images.is_cuda else contextlib.nullcontext():
            crop_kernel[grid](images, key, result, planes, height, width, **options)
    return result
