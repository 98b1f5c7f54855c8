"""The integers that define the round trip: quantisation tables, the DCT matrix, the colour weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdstream.errors import UserError

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""ITU-T T.81 (JPEG), Table K.1. Row = vertical frequency, column = horizontal frequency."""

CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
"""ITU-T T.81 (JPEG), Table K.2. Same order as :data:`LUMINANCE`."""

CONST_BITS = 13
"""Fraction bits of the DCT's constants (libjpeg's "islow" DCT)."""
PASS1_BITS = 2
"""Fraction bits that the "islow" DCT keeps between its two passes."""
COLOR_BITS = 16
"""Fraction bits of the colour weights."""


def _fixed(value: float, bits: int) -> int:
    """``value`` as a fixed-point integer with ``bits`` fraction bits, rounded to nearest."""
    return math.floor(value * (1 << bits) + 0.5)


def quant_table(quality: int | Tensor, chroma: bool) -> Tensor:
    """libjpeg's quantisation table for a quality, limited to 1..255 as baseline JPEG demands.

    Args:
        quality: 0..100, an int or an integer tensor of any shape [...]. 0 is read as 1, as libjpeg does. 50 gives
            the tables of the standard, 100 gives ones.
        chroma: True = the table of Cb and Cr, False = that of Y and of grey images.

    Returns:
        int64 [...,8,8] on the device of ``quality``; row = vertical frequency, column = horizontal frequency.

    Raises:
        UserError: a quality that is no integer or lies outside 0..100.

    Source: ITU-T T.81, Annex K.1; the scaling by quality is libjpeg's (``jpeg_quality_scaling``).
    """
    quality = as_qualities(quality)
    base = torch.tensor(CHROMINANCE if chroma else LUMINANCE, device=quality.device)
    quality = quality.clamp(min=1)
    percent = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return ((base * percent[..., None, None] + 50) // 100).clamp(1, 255)


def as_qualities(qualities: int | Sequence[int] | Tensor) -> Tensor:
    """``qualities`` as an int64 tensor of the same shape, checked.

    Raises:
        UserError: something else than integers, or a value outside 0..100.
    """
    try:
        given = torch.as_tensor(qualities)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"JPEG qualities must be integers 0..100, got {qualities!r}") from error
    if given.numel() == 0:
        return given.to(torch.int64)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise UserError(f"JPEG qualities must be integers 0..100, got {given.dtype}: convert them to int")
    given = given.to(torch.int64)
    low, high = (int(bound) for bound in given.aminmax())
    if low < 0 or high > 100:
        raise UserError(f"JPEG quality {low if low < 0 else high} is out of range: use 0..100")
    return given


def dct_matrix() -> Tensor:
    """The 8x8 matrix A of libjpeg's accurate integer DCT ("islow"), scaled by 2**CONST_BITS.

    One pass of the forward transform is ``A @ x`` followed by one rounding right shift; one pass of the inverse is
    ``A.T @ y`` followed by one rounding right shift, because the inverse's flow graph is the forward's, transposed.
    A / 2**CONST_BITS is close to sqrt(8) times the orthonormal DCT-II, but is not its rounding: the constants of the
    flow graph are rounded, and A's entries are sums of those. Hence A is derived from the graph here.

    Returns:
        int64 [8,8]: row = frequency, column = position.

    Source: Loeffler, Ligtenberg, Moschytz, "Practical fast 1-D DCT algorithms with 11 multiplications", ICASSP 1989,
    in the variant with 12 multiplications, as used by libjpeg.
    """
    return torch.tensor(_dct_columns()).T.contiguous()


@functools.cache
def _dct_columns() -> tuple[tuple[int, ...], ...]:
    """The flow graph's answers to the 8 unit vectors."""
    return tuple(tuple(_dct_butterflies([int(position == i) for position in range(8)])) for i in range(8))


def _dct_butterflies(x: list[int]) -> list[int]:
    """The 8 outputs of the flow graph for 8 integer inputs, scaled by 2**CONST_BITS and not yet rounded."""

    def rotor(*, c1: int = 0, c2: int = 0, c3: int = 0, c5: int = 0, c6: int = 0, c7: int = 0) -> int:
        """A constant of the graph: a sum of sqrt(2) * cos(k pi / 16), in fixed point."""
        terms = {1: c1, 2: c2, 3: c3, 5: c5, 6: c6, 7: c7}
        total = sum(sign * math.cos(k * math.pi / 16) for k, sign in terms.items())
        return _fixed(math.sqrt(2) * total, CONST_BITS)

    y = [0] * 8
    even = [x[i] + x[7 - i] for i in range(4)]
    odd = [x[i] - x[7 - i] for i in range(4)]

    y[0] = (even[0] + even[1] + even[2] + even[3]) << CONST_BITS
    y[4] = (even[0] - even[1] - even[2] + even[3]) << CONST_BITS
    outer, inner = even[0] - even[3], even[1] - even[2]
    shared = (outer + inner) * rotor(c6=1)
    y[2] = shared + outer * rotor(c2=1, c6=-1)
    y[6] = shared - inner * rotor(c2=1, c6=1)

    pivot = sum(odd) * rotor(c3=1)
    sum_03 = -(odd[0] + odd[3]) * rotor(c3=1, c7=-1)
    sum_12 = -(odd[1] + odd[2]) * rotor(c1=1, c3=1)
    sum_13 = -(odd[1] + odd[3]) * rotor(c3=1, c5=1) + pivot
    sum_02 = -(odd[0] + odd[2]) * rotor(c3=1, c5=-1) + pivot
    y[1] = odd[0] * rotor(c1=1, c3=1, c5=-1, c7=-1) + sum_03 + sum_02
    y[3] = odd[1] * rotor(c1=1, c3=1, c5=1, c7=-1) + sum_12 + sum_13
    y[5] = odd[2] * rotor(c1=1, c3=1, c5=-1, c7=1) + sum_12 + sum_02
    y[7] = odd[3] * rotor(c1=-1, c3=1, c5=1, c7=-1) + sum_03 + sum_13
    return y


def rgb_to_ycc_weights() -> tuple[Tensor, Tensor]:
    """Weights W and biases b, scaled by 2**COLOR_BITS: (Y, Cb, Cr) = (W @ (R, G, B) + b) >> COLOR_BITS.

    Cb and Cr round halves down (their bias is one unit short of a half), so that 255.5 cannot become 256.

    Returns:
        int64 [3,3] and int64 [3]. Source: ITU-R BT.601 as in JFIF 1.02; digits and rounding as in libjpeg.
    """
    weights = [[0.299, 0.587, 0.114], [-0.16874, -0.33126, 0.5], [0.5, -0.41869, -0.08131]]
    half, center = 1 << (COLOR_BITS - 1), 128 << COLOR_BITS
    signed = [[int(math.copysign(_fixed(abs(w), COLOR_BITS), w)) for w in row] for row in weights]
    return torch.tensor(signed), torch.tensor([half, center + half - 1, center + half - 1])


def ycc_to_rgb_weights() -> tuple[Tensor, Tensor]:
    """Weights W and biases b, scaled by 2**COLOR_BITS: (R, G, B) = (W @ (Y, Cb, Cr) + b) >> COLOR_BITS.

    The result is still to be limited to 0..255. The biases contain the rounding half and the centring of Cb and Cr.

    Returns:
        int64 [3,3] and int64 [3]. Source: JFIF 1.02; digits and rounding as in libjpeg.
    """
    weights = [[1.0, 0.0, 1.402], [1.0, -0.34414, -0.71414], [1.0, 1.772, 0.0]]
    signed = torch.tensor([[int(math.copysign(_fixed(abs(w), COLOR_BITS), w)) for w in row] for row in weights])
    return signed, (1 << (COLOR_BITS - 1)) - 128 * signed[:, 1:].sum(1)
