"""Boxes of a batch of images of any sizes cut by one Triton kernel, resized and antialiased.

A program makes a tile of one view. It weights the pixels of the box as Pillow and torch do (a filter as wide as a
pixel of the view, borders clamped to the box, weights that sum to 1), in float32 and rounded once: the pixels are those
of torchvision's ``resized_crop`` within a grey level.

This module imports Triton; :mod:`kdstream.stream.augment` imports it where boxes are cut on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 16, 32
"""Of a tile: 224 is a multiple of both, and a row of it is as long as a warp."""


@triton.jit
def _weight(x, BICUBIC: tl.constexpr):
    """The filter at x: a triangle that is 0 from -1 and 1 on, or the cubic with a = -1/2, 0 from -2 and 2 on."""
    x = tl.abs(x)
    if BICUBIC:
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        return tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    else:
        return tl.maximum(1.0 - x, 0.0)


@triton.jit
def _taps(position, length, SIZE: tl.constexpr, BICUBIC: tl.constexpr):
    """Which pixels of ``length`` those at ``position`` of SIZE are made of: the first, the last but one, the centre in
    their numbers, the filter's scale, and how many they are at most."""
    ratio = length.to(tl.float32) / SIZE
    stretch = tl.maximum(ratio, 1.0)
    support = stretch * 2.0 if BICUBIC else stretch
    centre = (position.to(tl.float32) + 0.5) * ratio
    first = tl.maximum(centre - support + 0.5, 0.0).to(tl.int32)
    end = tl.minimum((centre + support + 0.5).to(tl.int32), length)
    return first, end, centre - 0.5, 1.0 / stretch, (2.0 * support).to(tl.int32) + 2


@triton.jit
def boxes_kernel(
    pixels, table, views, SIZE: tl.constexpr, BICUBIC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """A tile of a view.

    pixels: uint8, the address that places count from. table: int64 [N,5]: where the box's first pixel lies, the
    image's width and its pixels in all, the box's height and width. views: uint8 [N,3,SIZE,SIZE].
    """
    ACROSS: tl.constexpr = (SIZE + COLUMNS - 1) // COLUMNS
    image, tile = tl.program_id(0), tl.program_id(1)
    place = table + image * 5
    red = pixels + tl.load(place)
    width = tl.load(place + 1).to(tl.int32)
    plane = tl.load(place + 2)
    green = red + plane
    blue = green + plane
    row = (tile // ACROSS) * ROWS + tl.arange(0, ROWS)
    column = (tile % ACROSS) * COLUMNS + tl.arange(0, COLUMNS)
    top, bottom, middle, down, most_rows = _taps(row, tl.load(place + 3).to(tl.int32), SIZE, BICUBIC)
    left, right, centre, across, most_columns = _taps(column, tl.load(place + 4).to(tl.int32), SIZE, BICUBIC)

    sum_across = tl.zeros([COLUMNS], tl.float32)
    for i in range(most_columns):
        sum_across += tl.where(left + i < right, _weight((left + i - centre) * across, BICUBIC), 0.0)
    sum_down = tl.zeros([ROWS], tl.float32)
    r = tl.zeros([ROWS, COLUMNS], tl.float32)
    g = tl.zeros([ROWS, COLUMNS], tl.float32)
    b = tl.zeros([ROWS, COLUMNS], tl.float32)
    for j in range(most_rows):
        y = top + j
        weight_down = tl.where(y < bottom, _weight((y - middle) * down, BICUBIC), 0.0)
        sum_down += weight_down
        here = (y < bottom) & (row < SIZE)
        for i in range(most_columns):
            x = left + i
            weight = weight_down[:, None] * _weight((x - centre) * across, BICUBIC)[None, :]
            inside = here[:, None] & ((x < right) & (column < SIZE))[None, :]
            at = y[:, None] * width + x[None, :]
            r += weight * tl.load(red + at, inside, 0).to(tl.float32)
            g += weight * tl.load(green + at, inside, 0).to(tl.float32)
            b += weight * tl.load(blue + at, inside, 0).to(tl.float32)

    whole = sum_down[:, None] * sum_across[None, :]
    at = views + image.to(tl.int64) * (3 * SIZE * SIZE) + row[:, None] * SIZE + column[None, :]
    inside = (row < SIZE)[:, None] & (column < SIZE)[None, :]
    tl.store(at, _level(r / whole), inside)
    tl.store(at + SIZE * SIZE, _level(g / whole), inside)
    tl.store(at + 2 * SIZE * SIZE, _level(b / whole), inside)


@triton.jit
def _level(value):
    """Rounded to a grey level; the cubic goes beyond both ends."""
    return tl.minimum(tl.maximum(value + 0.5, 0.0), 255.0).to(tl.int32).to(tl.uint8)


def cut(
    pixels: Tensor,
    places: Sequence[tuple[int, ...]],
    apart: Mapping[int, Tensor],
    size: int,
    interpolation: str,
) -> Tensor:
    """Views of the boxes.

    Args:
        pixels: uint8, images [3,H,W] one after another, on a CUDA device (with ``TRITON_INTERPRET=1``, on the host).
        places: for each image: where it begins, height, width; the box's top, left, height, width.
        apart: images, by their number, that are not in ``pixels``: uint8 [3,H,W], on the same device.
        size: of the views.
        interpolation: "bilinear" or "bicubic".

    Returns:
        uint8 [N,3,size,size].
    """
    device = pixels.device
    views = torch.empty(len(places), 3, size, size, dtype=torch.uint8, device=device)
    if not places:
        return views
    apart = {number: image.contiguous() for number, image in apart.items()}
    # The kernel counts from one address, wherever an image is.
    base = pixels if pixels.numel() else apart[0]
    rows = []
    for number, (start, height, width, top, left, *box) in enumerate(places):
        image = apart.get(number)
        begin = start if image is None else image.data_ptr() - base.data_ptr()
        rows.append((begin + top * width + left, width, height * width, *box))
    table = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    grid = (len(places), -(-size // _ROWS) * -(-size // _COLUMNS))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        boxes_kernel[grid](
            base, table, views, SIZE=size, BICUBIC=interpolation == "bicubic", ROWS=_ROWS, COLUMNS=_COLUMNS
        )
    return views
