"""The reference JPEG round trip in plain torch: exactly the pixels that libjpeg-turbo gives for encode + decode.

How it is computed. Everything that libjpeg does to a pixel is integer arithmetic: a weighted sum with integer weights
and one rounding right shift, again and again. Such sums are computed here in float64, whose integers are exact up to
2**53 (the largest sum here is below 2**31), with the shift folded into the weights (a power of two, hence exact too),
and the rounding by ``floor``. So the result does not depend on the order of a sum, on the device or on its BLAS.
Entropy coding is lossless and therefore left out.

Which libjpeg. libjpeg-turbo with Pillow's settings: accurate integer DCT ("islow") both ways, fancy upsampling, no
smoothing, baseline tables. Decoded samples outside 0..255 are limited, however far out they are. So does the vector
code of libjpeg-turbo (x86-64, Arm); its scalar code, for other processors, wraps beyond -384..639 instead, where
rare black and white patterns get at the lowest qualities (no photograph was seen to). The vector code's 16-bit values
cannot overflow: a block's coefficients have norm <= 1024 and quantisation moves each of the 64 by <= 127.5, hence
norm <= 2044 after it; the largest sum of two values between the passes is 2044 * sqrt(2) * sqrt(8) * 4 < 2**15.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdstream.errors import UserError
from kdstream.jpeg.tables import (
    COLOR_BITS,
    CONST_BITS,
    PASS1_BITS,
    as_qualities,
    dct_matrix,
    quant_table,
    rgb_to_ycc_weights,
    ycc_to_rgb_weights,
)

_SAMPLES_AT_A_TIME = 1 << 18
"""How many samples are worked on at once: 2 MB a tensor in float64, which stays in a processor's cache."""
_MIN_BAND = 64
"""Fewest rows in which a large image is cut."""
_MCU = 16
"""Rows and columns of the largest unit of blocks (4:2:0): bands of images start at its multiples."""


Subsampling = Literal["4:4:4", "4:2:0"]
"""Of the chroma planes: none, or halved both ways."""


def roundtrip(
    images: Tensor,
    qualities: Sequence[int] | Tensor,
    subsampling: Subsampling = "4:4:4",
) -> Tensor:
    """Images after JPEG compression and decompression, for several qualities at once.

    Bit for bit what Pillow with libjpeg-turbo gives for ``Image.save(format="JPEG", quality=q, subsampling=...)`` and
    ``Image.open(...)``, with its defaults otherwise. Quality 0 is ``quality=0`` in Pillow (9.5 and later, pillow-simd
    as well): libjpeg reads it as 1. (``quality=-1`` is not an end of that scale: it is libjpeg's default, 75.)

    Besides the result, temporaries take some tens of MB whatever the number of images, of qualities and of rows (more
    only for images of many thousand columns).

    Args:
        images: uint8 [N,C,H,W], C = 1 (grey) or 3 (RGB), H, W >= 1, any strides, any device.
        qualities: Q integers 0..100 for all images, or an integer tensor [N,Q]: Q qualities for each image.
        subsampling: of the chroma planes of RGB images: "4:4:4" = none, "4:2:0" = halved both ways. Without effect
            on grey images.

    Returns:
        uint8 [N,Q,C,H,W] on the device of ``images``, contiguous.

    Raises:
        UserError: images of another type or shape, no qualities, qualities of another type, shape or range, an
            unknown subsampling.

    Source: ITU-T T.81; libjpeg-turbo (islow DCT, fancy upsampling).
    """
    check_images(images)
    check_subsampling(subsampling)
    # Apple's GPUs have no float64.
    work = images.cpu() if images.device.type == "mps" else images
    asked = check_qualities(qualities, len(images)).to(work.device)
    halved = subsampling == "4:2:0" and images.shape[1] == 3

    result = work.new_empty(len(images), asked.shape[1], *images.shape[1:])
    for rows, top, bottom in _pieces(images.shape):
        # A band's chroma needs the neighbouring chroma row on both sides; a whole MCU row keeps blocks where they are.
        halo = _MCU if halved else 0
        start, stop = max(0, top - halo), bottom + halo
        planes = _encode(work[rows, :, start:stop], halved)
        piece = result[rows, :, :, top:bottom]
        theirs = asked[rows] if len(asked) == len(images) else asked
        many = max(1, _SAMPLES_AT_A_TIME // sum(plane.numel() for plane in planes))
        for first in range(0, asked.shape[1], many):
            some = theirs[:, first : first + many]
            pixels = _decode(planes, some, min(stop, images.shape[2]) - start, images.shape[3], halved)
            piece[:, first : first + many] = pixels[..., top - start : bottom - start, :]
    return result.to(images.device)


def check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"JPEG round trip: images must be a uint8 tensor [N,C,H,W], got {kind}: give values 0..255")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise UserError(
            f"JPEG round trip: images must have shape [N,C,H,W] with C = 1 or 3 and H, W >= 1, got {list(images.shape)}"
        )


def check_subsampling(subsampling: object, owner: str = "JPEG round trip") -> None:
    if subsampling not in ("4:4:4", "4:2:0"):
        raise UserError(f"{owner}: subsampling is {subsampling!r}; it is '4:4:4' or '4:2:0'")


def check_qualities(qualities: Sequence[int] | Tensor, count: int) -> Tensor:
    """The qualities as int64 [1,Q] (the same for all images) or [count,Q]."""
    given = as_qualities(qualities)
    for_all = given.ndim == 1
    if not (for_all or (given.ndim == 2 and len(given) == count)) or given.shape[-1] == 0:
        raise UserError(
            f"JPEG qualities must be Q >= 1 integers for all images or have shape [N,Q] = [{count},Q], "
            f"got shape {list(given.shape)}"
        )
    return given[None] if for_all else given


def _pieces(shape: Sequence[int]) -> Iterator[tuple[slice, int, int]]:
    """Cut images [N,C,H,W] into (images, first row, last row + 1) that can be worked on at once."""
    count, channels, height, width = shape
    a_row = channels * _round_up(width, _MCU)
    many = max(1, _SAMPLES_AT_A_TIME // (a_row * _round_up(height, _MCU)))
    band = max(_MIN_BAND, _round_up(_SAMPLES_AT_A_TIME // (a_row * many), _MCU))
    for first in range(0, count, many):
        for top in range(0, height, band):
            yield slice(first, min(first + many, count)), top, min(top + band, height)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _encode(images: Tensor, halved: bool) -> list[Tensor]:
    """What all qualities share: colour conversion, chroma downsampling, forward DCT.

    Args:
        images: uint8 [n,C,h,w].
        halved: 4:2:0.

    Returns:
        DCT coefficients of Y, and of Cb and Cr if there is colour (see :func:`_forward_dct`).
    """
    samples = images.transpose(0, 1).to(torch.float64)
    if len(samples) == 1:
        return [_forward_dct(samples)]
    ycc = _weigh(samples, *rgb_to_ycc_weights())
    chroma = _halve(ycc[1:]) if halved else ycc[1:]
    return [_forward_dct(ycc[:1]), _forward_dct(chroma)]


def _decode(planes: Sequence[Tensor], qualities: Tensor, height: int, width: int, halved: bool) -> Tensor:
    """From DCT coefficients to pixels: what every quality needs.

    Args:
        planes: what :func:`_encode` gave.
        qualities: int64 [n or 1,Q].
        height, width: of the images.
        halved: 4:2:0.

    Returns:
        float64 [n,Q,C,height,width] with the values of uint8; a view.
    """
    samples = _inverse_dct(planes[0], quant_table(qualities, chroma=False))[..., :height, :width]
    if len(planes) == 2:
        chroma = _inverse_dct(planes[1], quant_table(qualities, chroma=True))
        if halved:
            chroma = _double(chroma[..., : (height + 1) // 2, : (width + 1) // 2])
        ycc = torch.cat([samples, chroma[..., :height, :width]])
        samples = _weigh(ycc, *ycc_to_rgb_weights()).clamp_(0, 255)
    return samples.movedim(0, 2)


def _weigh(samples: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """floor((weights @ samples + bias) / 2**COLOR_BITS) over the first dimension, [3,...] -> [3,...]."""
    weights, bias = (value.to(samples) / (1 << COLOR_BITS) for value in (weights, bias))
    return torch.mm(weights, samples.reshape(3, -1)).add_(bias[:, None]).floor_().view(samples.shape)


def _pad(planes: Tensor, height: int, width: int) -> Tensor:
    """Planes [P,n,h,w] brought to a size by repeating the last column and the last row."""
    return F.pad(planes, (0, width - planes.shape[3], 0, height - planes.shape[2]), mode="replicate")


def _halve(planes: Tensor) -> Tensor:
    """Chroma planes [P,n,h,w] at half the size: means of 2x2 samples, halves rounded down and up in turn.

    libjpeg repeats the last column before this step, up to whole blocks, but the last row only up to an even number
    (the rest is repeated after it). This matters: the alternating rounding makes the repeated columns differ.
    """
    planes = _pad(planes, _round_up(planes.shape[2], 2), _round_up(planes.shape[3], _MCU))
    two_rows = planes[..., ::2, :] + planes[..., 1::2, :]
    total = two_rows[..., ::2] + two_rows[..., 1::2]
    total[..., ::2] += 1
    total[..., 1::2] += 2
    return total.div_(4).floor_()


def _double(planes: Tensor) -> Tensor:
    """Chroma planes [...,h,w] at twice the size: libjpeg's "fancy" (triangle filter) upsampling.

    The weights are 9/16, 3/16, 3/16, 1/16 for the nearest samples, with edges repeated. Planes of 1 or 2 columns are
    not filtered in any direction: libjpeg repeats their samples.
    """
    if planes.shape[-1] <= 2:
        return planes.repeat_interleave(2, -2).repeat_interleave(2, -1)
    total = _triangle(_triangle(planes, planes.ndim - 2), planes.ndim - 1)
    total[..., ::2] += 8
    total[..., 1::2] += 7
    return total.div_(16).floor_()


def _triangle(x: Tensor, dim: int) -> Tensor:
    """4 times the triangle filter along a dimension: for each sample 3 x + (the one before), 3 x + (the one after)."""
    size = x.shape[dim]
    before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, size - 1)], dim)
    after = torch.cat([x.narrow(dim, 1, size - 1), x.narrow(dim, size - 1, 1)], dim)
    nearest = 3 * x
    return torch.stack([nearest + before, nearest + after], dim + 1).flatten(dim, dim + 1)


def _forward_dct(planes: Tensor) -> Tensor:
    """8x8 DCT coefficients of planes.

    Args:
        planes: float64 [P,n,h,w], values 0..255; padded to whole blocks here.

    Returns:
        float64 [P,n,R,8,8*B]: for each of the R rows of B blocks, 8 rows of coefficients, 8 times the orthonormal
        DCT, moved away from zero by a quarter. They are integers before; quantisation has to round halves away from
        zero, and after that shift there are no halves left and no integer has crossed one.
    """
    height, width = (_round_up(size, 8) for size in planes.shape[2:])
    samples = _pad(planes, height, width) - 128
    matrix = dct_matrix().to(samples)
    rows = torch.mm(samples.view(-1, 8), matrix.T / (1 << (CONST_BITS - PASS1_BITS))).add_(0.5).floor_()
    rows = rows.view(-1, 8, width)
    coefficients = torch.matmul(matrix / (1 << (CONST_BITS + PASS1_BITS)), rows).add_(0.5).floor_()
    coefficients += coefficients.sign() / 4
    return coefficients.view(*planes.shape[:2], height // 8, 8, width)


def _inverse_dct(coefficients: Tensor, tables: Tensor) -> Tensor:
    """Quantise, dequantise and transform back.

    Args:
        coefficients: what :func:`_forward_dct` gave, [P,n,R,8,8*B].
        tables: int64 [n or 1,Q,8,8].

    Returns:
        float64 [P,n,Q,8*R,8*B], integers 0..255.
    """
    planes, count, block_rows, _, width = coefficients.shape
    steps = tables.to(coefficients).repeat(1, 1, 1, width // 8)[:, :, None]
    values = (coefficients[:, :, None] / (8 * steps)).round_().mul_(steps)
    matrix = dct_matrix().to(values)
    columns = torch.matmul(matrix.T / (1 << (CONST_BITS - PASS1_BITS)), values.view(-1, 8, width))
    columns.add_(0.5).floor_()
    # The last 3 bits undo the factor 8 of two passes; 128 is the level shift.
    samples = torch.mm(columns.view(-1, 8), matrix / (1 << (CONST_BITS + PASS1_BITS + 3)))
    samples.add_(128.5).floor_().clamp_(0, 255)
    return samples.view(planes, count, tables.shape[1], 8 * block_rows, width)
