"""The arithmetic of the CPU kernel: a group of 8x8 blocks at once, one block per vector lane, in 16-bit integers.

Everything is written out for :class:`kdstream.jpeg.vectors.Emitter`; the functions at the end are what the numba code
of :mod:`kdstream.jpeg.cpu_kernel` calls. All take addresses (integers) and return nothing.

Two samples or coefficients of a block share a lane, as the low and the high half: multiply-and-add instructions then
do a quarter of an 8-point DCT's sum at once, and no value has to move from lane to lane. Which two is chosen such that
each pass finds the pairs it multiplies:

==============  ===============================  ==========================
what            pairs                            that share a lane
==============  ===============================  ==========================
samples         columns (0,2) (1,3) (4,6) (5,7)  of one row
after rows      rows (0,2) (1,3) (4,6) (5,7)     of one column of the forward DCT
coefficients    rows (0,4) (2,6) (1,3) (5,7)     of one column
after columns   columns (0,4) (2,6) (1,3) (5,7)  of one row of the inverse DCT
==============  ===============================  ==========================

The numbers are those of :mod:`kdstream.jpeg.reference`: sums that fit 32 bits, then one rounding shift; why 16 bits
hold what is between the passes is said there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from kdstream.jpeg.tables import (
    COLOR_BITS,
    CONST_BITS,
    PASS1_BITS,
    dct_matrix,
    quant_table,
    rgb_to_ycc_weights,
    ycc_to_rgb_weights,
)
from kdstream.jpeg.vectors import I8, I32, I64, Emitter, Machine

MACHINE = Machine.of(*(cpu_target.target_context.codegen().magic_tuple()[i] for i in (0, 2)))
LANES = MACHINE.lanes
"""Blocks of a group."""
V = MACHINE.bytes
"""Bytes of a vector."""
ROW = 2 * V
"""Bytes of one row of samples of all blocks of a group, as uint8."""
STAGE = 8 * ROW
"""Bytes of all samples of a group (of one plane), as uint8: [8 rows][blocks][8 columns]."""
PLANE = 32 * V
"""Bytes of all samples or coefficients of a group (of one plane), as 16-bit pairs."""
WORDS = 96
"""32-bit words of one quantisation table: for each of the 32 pairs of coefficients, in order, what
:func:`quantisation_words` gives."""

PAIRS_STRAIGHT = ((0, 2), (1, 3), (4, 6), (5, 7))
PAIRS_SPLIT = ((0, 4), (2, 6), (1, 3), (5, 7))

_ALL_128 = 0x80808080 - (1 << 32)
"""Four bytes of 128: flipping these bits adds 128 to each."""
_DCT = dct_matrix().tolist()
_TO_YCC, _TO_YCC_BIAS = (value.tolist() for value in rgb_to_ycc_weights())
_TO_RGB, _TO_RGB_BIAS = (value.tolist() for value in ycc_to_rgb_weights())
_PASS1_SHIFT = CONST_BITS - PASS1_BITS
_FORWARD_SHIFT = CONST_BITS + PASS1_BITS
_INVERSE_SHIFT = CONST_BITS + PASS1_BITS + 3


def positions() -> list[int]:
    """For each lane the block (of a group, in memory's order) that it holds: loads and stores are cheapest so."""
    half = LANES // 2
    return [2 * (lane // 4) + lane % 2 + (half if lane % 4 >= 2 else 0) for lane in range(LANES)]


def quantisation_words() -> torch.Tensor:
    """What the kernel multiplies with, for every quality.

    A coefficient is kept as c = 2 * (8 times the orthonormal DCT) + 1 or - 1, away from zero: odd, so that c / d with
    d = 16 * step is never halfway between two integers. Rounding c / d takes two multiplications: with b such that
    2**(b+1) < d < 2**(b+2), r = round(2**(16+b) / d) is below 2**15, and

        round(c / d) = floor(floor(c * r / 2**16) / 2**b + 1/2)

    because c * r / 2**(16+b) is off by less than |c| / (2 d) * d / 2**(16+b) < 1 / d (|c| < 2**15), while c / d is at
    least 1 / d away from the next half. If d is a power of two, r = 2**14 and b one less are exact. The second step is
    one rounding multiplication by 2**(15-b).

    Returns:
        int32 [101 qualities, 2 (luma, chroma), 32 pairs, 3]: r, 2**(15-b) and step, each as a pair of 16 bits.
    """
    qualities = torch.arange(101)
    steps = torch.stack([quant_table(qualities, chroma=False), quant_table(qualities, chroma=True)], 1)
    divisors = 16 * steps
    powers = (divisors & (divisors - 1)) == 0
    log2 = torch.log2(divisors.double()).floor().long()
    bits = torch.where(powers, log2 - 2, log2 - 1)
    reciprocals = ((1 << (17 + bits)) + divisors).div(2 * divisors, rounding_mode="floor")
    values = torch.stack([reciprocals, 1 << (15 - bits), steps], -1)
    columns = [column for pair in PAIRS_SPLIT for column in pair]
    low, high = (values[:, :, [pair[i] for pair in PAIRS_SPLIT]][:, :, :, columns] for i in (0, 1))
    words = (low | high << 16).transpose(2, 3)
    return words.reshape(101, 2, WORDS // 3, 3).to(torch.int32).contiguous()


# Transforms of 8 values per lane


def _forward(e: Emitter, pairs: Sequence[ir.Value], shift: int) -> list[ir.Value]:
    """8 unshifted sums (with the rounding half) of a forward pass, from pairs (0,2) (1,3) (4,6) (5,7)."""
    p02, p13, p46, p57 = pairs
    p75, p64 = e.swap16(p57), e.swap16(p46)
    sums, differences = (e.add16(p02, p75), e.add16(p13, p64)), (e.sub16(p02, p75), e.sub16(p13, p64))
    half = e.constant(1 << (shift - 1))
    result = []
    for k, weights in enumerate(_DCT):
        even, odd = differences if k % 2 else sums
        total = e.add(half, e.madd16(even, e.pair(weights[0], weights[2])))
        result.append(e.add(total, e.madd16(odd, e.pair(weights[1], weights[3]))))
    return result


def _inverse(e: Emitter, pairs: Sequence[ir.Value], shift: int) -> list[ir.Value]:
    """8 unshifted sums (with the rounding half) of an inverse pass, from pairs (0,4) (2,6) (1,3) (5,7)."""
    p04, p26, p13, p57 = pairs
    half = e.constant(1 << (shift - 1))
    result: list[ir.Value] = [half] * 8
    outer = e.add(half, e.madd16(p04, e.pair(_DCT[0][0], _DCT[4][0])))
    inner = e.add(half, e.madd16(p04, e.pair(_DCT[0][1], _DCT[4][1])))
    turn_outer = e.madd16(p26, e.pair(_DCT[2][0], _DCT[6][0]))
    turn_inner = e.madd16(p26, e.pair(_DCT[2][1], _DCT[6][1]))
    even = [
        e.add(outer, turn_outer),
        e.add(inner, turn_inner),
        e.sub(inner, turn_inner),
        e.sub(outer, turn_outer),
    ]
    for i in range(4):
        odd = e.madd16(p13, e.pair(_DCT[1][i], _DCT[3][i]))
        odd = e.add(odd, e.madd16(p57, e.pair(_DCT[5][i], _DCT[7][i])))
        result[i], result[7 - i] = e.add(even[i], odd), e.sub(even[i], odd)
    return result


def _shifted_pair(e: Emitter, low: ir.Value, high: ir.Value, shift: int) -> ir.Value:
    """The pair (low >> shift, high >> shift) for shifts up to 16."""
    return e.blend16(e.right_unsigned(low, shift), e.left(high, 16 - shift) if shift < 16 else high)


# What the kernel calls


def _on_addresses(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes ``emit(emitter, *addresses)`` a function for numba that takes addresses and runs what was written."""

    def decorate(emit: Callable[..., None]) -> Callable[..., None]:
        def typed(typing_context, *given):
            def generate(context, builder, signature, values):
                emit(Emitter(builder, MACHINE), *values)
                return context.get_dummy_value()

            return types.void(*[types.int64] * count), generate

        typed.__name__ = typed.__qualname__ = emit.__name__
        typed.__doc__ = emit.__doc__
        names = ["typing_context", *list(inspect.signature(emit).parameters)[1:]]
        # numba does not take "*given" for what it is.
        typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # numba reads it where it is set
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        )
        return intrinsic(typed)

    return decorate


def _load_samples(e: Emitter, row: ir.Value) -> list[ir.Value]:
    """One row of a stage as pairs (0,2) (1,3) (4,6) (5,7), values 0..255."""
    first, second = e.load(row), e.load(row, V)
    mask = e.pair(255, 255)
    pairs = []
    for picks in ((0, 2, 4, 6), (1, 3, 5, 7)):
        four = e.shuffle32(first, second, picks)
        pairs += [e.bits_and(four, mask), e.bits_and(e.right_unsigned(four, 8), mask)]
    return pairs


@_on_addresses(2)
def split_plane(e: Emitter, row: ir.Value, samples: ir.Value) -> None:
    """One row of a stage -> 4 pair vectors of samples, 128 less."""
    for i, pair in enumerate(_load_samples(e, row)):
        e.store(e.sub16(pair, e.pair(128, 128)), samples, i * V)


@_on_addresses(2)
def split_color(e: Emitter, row: ir.Value, samples: ir.Value) -> None:
    """One row of three stages (R, G, B, STAGE apart) -> Y, Cb, Cr, PLANE apart: 4 pair vectors each, 128 less."""
    stages = [_load_samples(e, e.builder.add(row, ir.Constant(row.type, i * STAGE))) for i in range(3)]
    for i, (red, green, blue) in enumerate(zip(*stages, strict=True)):
        green_up = e.left(green, 16)
        low = _to_ycc(e, e.blend16(red, green_up), e.blend16(blue, green_up))
        high = _to_ycc(e, e.blend16(e.right_unsigned(red, 16), green), e.blend16(e.right_unsigned(blue, 16), green))
        for plane in range(3):
            pair = _shifted_pair(e, low[plane], high[plane], COLOR_BITS)
            e.store(pair, samples, plane * PLANE + i * V)


def _to_ycc(e: Emitter, red_green: ir.Value, blue_green: ir.Value) -> list[ir.Value]:
    """Y, Cb, Cr, all 128 less, as unshifted 32-bit sums, from pairs (R, G) and (B, G)."""
    (r_y, g_y, b_y), (r_cb, g_cb, b_cb), (r_cr, g_cr, b_cr) = _TO_YCC
    # 1/2 is one too many for 16 bits with sign: its negative is subtracted; G's weight of Y is split.
    quarter = 1 << (COLOR_BITS - 2)
    luma = e.add(e.madd16(red_green, e.pair(r_y, g_y - quarter)), e.madd16(blue_green, e.pair(b_y, quarter)))
    cb = e.sub(e.madd16(red_green, e.pair(r_cb, g_cb)), e.madd16(blue_green, e.pair(-b_cb, 0)))
    cr = e.sub(e.madd16(blue_green, e.pair(b_cr, g_cr)), e.madd16(red_green, e.pair(-r_cr, 0)))
    return [
        e.add(total, e.constant(bias - (128 << COLOR_BITS)))
        for total, bias in zip((luma, cb, cr), _TO_YCC_BIAS, strict=True)
    ]


@_on_addresses(3)
def forward_rows(e: Emitter, upper: ir.Value, lower: ir.Value, columns: ir.Value) -> None:
    """First pass of the forward DCT over two rows: two times 4 vectors of samples -> a pair in each of 8 columns."""
    sums = [_forward(e, [e.load(row, i * V) for i in range(4)], _PASS1_SHIFT) for row in (upper, lower)]
    for column, (low, high) in enumerate(zip(*sums, strict=True)):
        e.store(_shifted_pair(e, low, high, _PASS1_SHIFT), columns, 4 * column * V)


@_on_addresses(2)
def forward_columns(e: Emitter, column: ir.Value, coefficients: ir.Value) -> None:
    """Second pass over one column: 4 pair vectors -> 4 pair vectors of odd coefficients."""
    sums = _forward(e, [e.load(column, i * V) for i in range(4)], _FORWARD_SHIFT)
    for i, (low, high) in enumerate(PAIRS_SPLIT):
        pair = _shifted_pair(e, sums[low], sums[high], _FORWARD_SHIFT)
        pair = e.add16(pair, e.right16(pair, 15))
        e.store(e.bits_or(e.add16(pair, pair), e.pair(1, 1)), coefficients, i * V)


def _inverse_columns(e: Emitter, value: Callable[[int], ir.Value], rows: ir.Value) -> None:
    """First pass of the inverse DCT for the two columns of a pair; ``value(i)`` gives vector i of 8, dequantised."""
    sums = []
    for column in range(2):
        sums.append(_inverse(e, [value(i) for i in range(4 * column, 4 * column + 4)], _PASS1_SHIFT))
    for row, (low, high) in enumerate(zip(*sums, strict=True)):
        e.store(_shifted_pair(e, low, high, _PASS1_SHIFT), rows, 4 * row * V)


def _requantised(e: Emitter, coefficients: ir.Value, words: Callable[[int], ir.Value]) -> Callable[[int], ir.Value]:
    """Coefficients of the forward DCT, quantised and dequantised."""

    def value(i: int) -> ir.Value:
        level = e.mulhrs16(e.mulhi16(e.load(coefficients, i * V), words(3 * i)), words(3 * i + 1))
        return e.mul16(level, words(3 * i + 2))

    return value


@_on_addresses(3)
def inverse_columns(e: Emitter, coefficients: ir.Value, table: ir.Value, rows: ir.Value) -> None:
    """8 vectors of coefficients (two columns), 24 words -> one pair vector in each of 8 rows."""
    _inverse_columns(e, _requantised(e, coefficients, lambda i: e.load_splat(table, 4 * i)), rows)


@_on_addresses(3)
def inverse_columns_each(e: Emitter, coefficients: ir.Value, table: ir.Value, rows: ir.Value) -> None:
    """The same with 24 vectors of words: every block has its own quality."""
    _inverse_columns(e, _requantised(e, coefficients, lambda i: e.load(table, i * V)), rows)


@_on_addresses(2)
def inverse_columns_read(e: Emitter, coefficients: ir.Value, rows: ir.Value) -> None:
    """The same for coefficients as a file holds them, dequantised."""
    _inverse_columns(e, lambda i: e.load(coefficients, i * V), rows)


@_on_addresses(3)
def set_words(e: Emitter, words: ir.Value, table: ir.Value, start: ir.Value) -> None:
    """Both tables (2 * WORDS words) of the blocks from ``start`` on, into a table with vectors of words."""
    start = e.builder.trunc(start, I32)
    for i in range(2 * WORDS):
        e.store(e.select(positions(), start, e.load_splat(words, 4 * i), e.load(table, i * V)), table, i * V)


def _inverse_rows(e: Emitter, row: ir.Value) -> list[ir.Value]:
    """Second pass of the inverse DCT: one row's 4 pair vectors -> samples -128..127 as 16 bits.

    8 bits more than a sample has are kept until the numbers are made 16 bits wide with saturation: this limits them.

    Returns:
        Columns (0,1) (2,3) (4,5) (6,7): in each chunk, those of the first, then those of the second.
    """
    sums = _inverse(e, [e.load(row, i * V) for i in range(4)], _INVERSE_SHIFT)
    wide = [e.right(total, _INVERSE_SHIFT - 8) for total in sums]
    return [e.right16(e.pack32(wide[i], wide[i + 1]), 8) for i in (0, 2, 4, 6)]


def _store_samples(e: Emitter, pairs: Sequence[ir.Value], row: ir.Value, offset: int = 0) -> None:
    """What :func:`_inverse_rows` gives (values out of range are limited) as one row of a stage."""
    fours = [e.transpose8(e.pack16(pairs[i], pairs[i + 1])) for i in (0, 2)]
    first, second = (e.bits_xor(four, e.constant(_ALL_128)) for four in fours)
    for i, picks in enumerate(((0, 4, 1, 5), (2, 6, 3, 7))):
        e.store(e.shuffle32(first, second, picks), row, offset + i * V)


@_on_addresses(2)
def inverse_rows_plane(e: Emitter, row: ir.Value, stage: ir.Value) -> None:
    """4 pair vectors of one row -> one row of a stage."""
    _store_samples(e, _inverse_rows(e, row), stage)


@_on_addresses(2)
def inverse_rows_color(e: Emitter, row: ir.Value, stage: ir.Value) -> None:
    """One row of Y, Cb, Cr (PLANE apart) -> one row of R, G, B (STAGE apart)."""
    planes = [_inverse_rows(e, e.builder.add(row, ir.Constant(row.type, i * PLANE))) for i in range(3)]
    colors: list[list[ir.Value]] = [[], [], []]
    for luma, blue, red in zip(*planes, strict=True):
        for color, value in zip(colors, _to_rgb(e, luma, blue, red), strict=True):
            color.append(value)
    for i, color in enumerate(colors):
        _store_samples(e, color, stage, i * STAGE)


def _to_rgb(e: Emitter, luma: ir.Value, blue: ir.Value, red: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """R, G, B from Y, Cb, Cr, 16 bits, all 128 less; still to be limited."""
    # Two rounding multiplications by weights with 14 fraction bits give libjpeg's integers for all 256 chroma values
    # (a test says so); the two weights of G need the full 16 fraction bits.
    red_more, blue_more = e.add16(red, red), e.add16(blue, blue)
    to_red, to_blue = (e.pair(w, w) for w in (_rounded(_TO_RGB[0][2], 2), _rounded(_TO_RGB[2][1], 2)))
    # G's weight of Cr is below -1/2: -1 is taken off at the end, what is left fits 16 bits with sign.
    weights = e.pair(_TO_RGB[1][1], _TO_RGB[1][2] + (1 << COLOR_BITS))
    half = e.constant(1 << (COLOR_BITS - 1))
    sums = [e.right(e.add(half, e.madd16(x, weights)), COLOR_BITS) for x in e.unpack16(blue, red)]
    green = e.sub16(e.add16(luma, e.pack32(*sums)), red)
    return e.add16(luma, e.mulhrs16(red_more, to_red)), green, e.add16(luma, e.mulhrs16(blue_more, to_blue))


@_on_addresses(6)
def row_to_ycc(
    e: Emitter, red: ir.Value, green: ir.Value, blue: ir.Value, luma: ir.Value, cb: ir.Value, cr: ir.Value
) -> None:
    """V neighbouring pixels: R, G, B -> Y, Cb, Cr, all uint8."""
    zero = e.constant(0)
    halves = zip(*(e.unpack8(e.load(color), zero) for color in (red, green, blue)), strict=True)
    sums = [_to_ycc(e, *pairs) for r, g, b in halves for pairs in zip(e.unpack16(r, g), e.unpack16(b, g), strict=True)]
    for i, target in enumerate((luma, cb, cr)):
        quarters = [e.right(total[i], COLOR_BITS) for total in sums]
        value = e.pack16(e.pack32(quarters[0], quarters[1]), e.pack32(quarters[2], quarters[3]))
        e.store(e.bits_xor(value, e.constant(_ALL_128)), target)


@_on_addresses(6)
def row_to_rgb(
    e: Emitter, luma: ir.Value, cb: ir.Value, cr: ir.Value, red: ir.Value, green: ir.Value, blue: ir.Value
) -> None:
    """The reverse of :func:`row_to_ycc`."""
    centered = [e.bits_xor(e.load(plane), e.constant(_ALL_128)) for plane in (luma, cb, cr)]
    halves = zip(*([e.right16(x, 8) for x in e.unpack8(plane, plane)] for plane in centered), strict=True)
    colors = zip(*(_to_rgb(e, *half) for half in halves), strict=True)
    for (low, high), target in zip(colors, (red, green, blue), strict=True):
        e.store(e.bits_xor(e.pack16(low, high), e.constant(_ALL_128)), target)


def _rounded(weight: int, bits: int) -> int:
    """A weight with ``bits`` fraction bits fewer; halves up."""
    return (weight + (1 << (bits - 1))) >> bits


def _copy(size: int) -> Callable:
    def copy(e: Emitter, source: ir.Value, target: ir.Value) -> None:
        kind = ir.VectorType(I8, size)
        value = e.builder.load(e.pointer(source, 0, kind), align=1)
        e.builder.store(value, e.pointer(target, 0, kind), align=1)

    return _on_addresses(2)(copy)


copy_32, copy_16, copy_8, copy_1 = (_copy(size) for size in (32, 16, 8, 1))


@_on_addresses(1)
def prefetch(e: Emitter, address: ir.Value) -> None:
    """Ask for a cache line that will be written."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(e.builder.module, kind, "llvm.prefetch.p0")
    flags = [ir.Constant(I32, value) for value in (1, 3, 1)]
    e.builder.call(function, [e.pointer(address, 0, I8), *flags])


def _pointer(typing_context, address):

    def generate(context, builder, signature, values):
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def _big_endian(typing_context, address):

    def generate(context, builder, signature, values):
        return builder.bswap(builder.load(builder.inttoptr(values[0], I64.as_pointer()), align=1))

    return types.uint64(types.int64), generate


load_64: Any = intrinsic(_big_endian)
"""The 8 bytes at an address as an unsigned number, the first of them its highest."""

at: Any = intrinsic(_pointer)
"""An address as a pointer, for ``numba.carray``: called with the address alone."""
