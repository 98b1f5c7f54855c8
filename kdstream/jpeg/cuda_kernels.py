"""The Triton kernels of the CUDA round trip: what a program does with a tile of 8x8 blocks.

A tile is a vector of lanes. A lane holds one row or one column of one block, its 8 samples in 8 registers, so the
butterflies of a DCT pass stay within a lane; between two passes 8 neighbouring lanes exchange their 8x8 values.

Exactness. All sums are int32. Their results fit (see :mod:`kdstream.jpeg.reference` for the bounds: before its last
shift a decoded sample is below 2045 * 2**18 < 2**30, a colour below 2**26), so it does not matter whether a partial sum
wraps. Only the quotient coefficient / step is rounded in float32: see :func:`_requantise`.

This module imports Triton; :mod:`kdstream.jpeg.cuda` does not, until it is asked for a round trip.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The constants of libjpeg's flow graph ("islow"): sums of sqrt(2) * cos(k pi / 16), 13 fraction bits.
C0_298 = tl.constexpr(2446)
C0_390 = tl.constexpr(3196)
C0_541 = tl.constexpr(4433)
C0_765 = tl.constexpr(6270)
C0_899 = tl.constexpr(7373)
C1_175 = tl.constexpr(9633)
C1_501 = tl.constexpr(12299)
C1_847 = tl.constexpr(15137)
C1_961 = tl.constexpr(16069)
C2_053 = tl.constexpr(16819)
C2_562 = tl.constexpr(20995)
C3_072 = tl.constexpr(25172)

MAGIC = tl.constexpr(12582912.0)
"""1.5 * 2**23: a float32 near it has no fraction bits, so adding it rounds to the nearest integer."""
MAGIC_BITS = tl.constexpr(0x4B400000)
"""The bits of MAGIC; those of MAGIC + k are MAGIC_BITS + k."""


_IMAGES = ["images", "image_stride", "channel_stride", "row_stride", "col_stride", "height", "width"]
_CHROMA_GENERAL = [*_IMAGES, "chroma", "qualities", "quality_stride", "many", "some", "across", "down"]
_PIXELS_GENERAL = [*_CHROMA_GENERAL, "versions", "version_image_stride", "version_stride", "chroma_stride"]
"""Arguments whose values (1, multiples of 16) make no difference: without this, sizes would be compiled one by one."""


@triton.jit
def _exchange(x, BLOCKS: tl.constexpr):
    """8 vectors over (block, i), numbered j -> 8 vectors over (block, j), numbered i: blocks transposed."""
    tile = tl.join(
        tl.join(tl.join(x[0], x[4]), tl.join(x[2], x[6])),
        tl.join(tl.join(x[1], x[5]), tl.join(x[3], x[7])),
    )
    tile = tl.permute(tl.reshape(tile, [BLOCKS, 8, 8]), (0, 2, 1))
    even, odd = tl.split(tl.reshape(tile, [8 * BLOCKS, 2, 2, 2]))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x1, x5 = tl.split(x15)
    x2, x6 = tl.split(x26)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def _forward(x, SHIFT: tl.constexpr, EVEN_SHIFT: tl.constexpr):
    """One pass of the forward DCT within lanes: 8 samples -> 8 frequencies.

    SHIFT: of the result, rounding; EVEN_SHIFT = 13 - SHIFT (positive: left), for the two outputs without constants.
    """
    HALF: tl.constexpr = 1 << (SHIFT - 1)
    s07, s16, s25, s34 = x[0] + x[7], x[1] + x[6], x[2] + x[5], x[3] + x[4]
    d07, d16, d25, d34 = x[0] - x[7], x[1] - x[6], x[2] - x[5], x[3] - x[4]

    outer, inner = s07 + s34, s16 + s25
    if EVEN_SHIFT >= 0:
        y0, y4 = (outer + inner) << EVEN_SHIFT, (outer - inner) << EVEN_SHIFT
    else:
        LITTLE: tl.constexpr = 1 << (-EVEN_SHIFT - 1)
        y0, y4 = (outer + inner + LITTLE) >> -EVEN_SHIFT, (outer - inner + LITTLE) >> -EVEN_SHIFT
    outer, inner = s07 - s34, s16 - s25
    shared = (outer + inner) * C0_541 + HALF
    y2 = (shared + outer * C0_765) >> SHIFT
    y6 = (shared - inner * C1_847) >> SHIFT

    pivot = (d07 + d16 + d25 + d34) * C1_175
    z1 = -(d34 + d07) * C0_899
    z2 = -(d25 + d16) * C2_562
    z3 = pivot + HALF - (d34 + d16) * C1_961
    z4 = pivot + HALF - (d25 + d07) * C0_390
    y7 = (d34 * C0_298 + z1 + z3) >> SHIFT
    y5 = (d25 * C2_053 + z2 + z4) >> SHIFT
    y3 = (d16 * C3_072 + z2 + z3) >> SHIFT
    y1 = (d07 * C1_501 + z1 + z4) >> SHIFT
    return y0, y1, y2, y3, y4, y5, y6, y7


@triton.jit
def _inverse(y, BIAS: tl.constexpr):
    """One pass of the inverse DCT within lanes: 8 frequencies -> 8 samples + BIAS, both with 13 more fraction bits."""
    even = (y[0] + y[4]) * 8192 + BIAS
    odd = (y[0] - y[4]) * 8192 + BIAS
    shared = (y[2] + y[6]) * C0_541
    t2 = shared - y[6] * C1_847
    t3 = shared + y[2] * C0_765
    e0, e3 = even + t3, even - t3
    e1, e2 = odd + t2, odd - t2

    z3, z4 = y[7] + y[3], y[5] + y[1]
    pivot = (z3 + z4) * C1_175
    z1 = (y[7] + y[1]) * C0_899
    z2 = (y[5] + y[3]) * C2_562
    z3 = pivot - z3 * C1_961
    z4 = pivot - z4 * C0_390
    o0 = y[7] * C0_298 - z1 + z3
    o1 = y[5] * C2_053 - z2 + z4
    o2 = y[3] * C3_072 - z2 + z3
    o3 = y[1] * C1_501 - z1 + z4
    return e0 + o3, e1 + o2, e2 + o1, e3 + o0, e3 - o0, e2 - o1, e1 - o2, e0 - o3


@triton.jit
def _away(c):
    """A coefficient as float32, moved away from zero by a quarter: see the reference's ``_forward_dct``."""
    quarter = tl.where(c > 0, 0.25, tl.where(c < 0, -0.25, 0.0))
    return c.to(tl.float32) + quarter


@triton.jit
def _coefficients(x, BLOCKS: tl.constexpr):
    """8 vectors over (block, row) of level-shifted samples -> 8 vectors over (block, column), one a vertical frequency.

    float32: 8 times the orthonormal DCT, moved away from zero by a quarter.
    """
    y = _forward(_exchange(_forward(x, 11, 2), BLOCKS), 15, -2)
    return _away(y[0]), _away(y[1]), _away(y[2]), _away(y[3]), _away(y[4]), _away(y[5]), _away(y[6]), _away(y[7])


@triton.jit
def _requantise(c, packed):
    """Quantise and dequantise. packed: int64, the step in the upper half, float32 1 / (8 step) in the lower.

    Exact: |c| <= 8192.25, so c times the reciprocal has an error below 2 * 2**-24 * 8192.25 / (8 step), whether the
    product is rounded by itself or fused with the sum. The nearest half is at least 1 / (32 step) away, 64 times that.
    """
    reciprocal = packed.to(tl.int32).to(tl.float32, bitcast=True)
    step = (packed >> 32).to(tl.int32)
    return (tl.fma(c, reciprocal, MAGIC).to(tl.int32, bitcast=True) - MAGIC_BITS) * step


@triton.jit
def _steps(table):
    """The entries of 8 vertical frequencies; table: pointers to the first, in each lane at its horizontal frequency."""
    return (
        tl.load(table),
        tl.load(table + 8),
        tl.load(table + 16),
        tl.load(table + 24),
        tl.load(table + 32),
        tl.load(table + 40),
        tl.load(table + 48),
        tl.load(table + 56),
    )


@triton.jit
def _limit(x, TOP: tl.constexpr, HOPPER: tl.constexpr):
    """x limited to 0..TOP. HOPPER: one instruction, which also takes in the sum before it."""
    if HOPPER:
        return tl.inline_asm_elementwise("min.relu.s32 $0, $1, $2;", "=r,r,r", [x, TOP], tl.int32, True, 1)
    else:
        return tl.minimum(tl.maximum(x, 0), TOP)


@triton.jit
def _third_bytes(x0, x1, x2, x3, HOPPER: tl.constexpr):
    """Bits 16..23 of four int32, whose bits above are 0, as the bytes of one."""
    if HOPPER:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 low, high;
            prmt.b32 low, $1, $2, 0x0062;
            prmt.b32 high, $3, $4, 0x0062;
            prmt.b32 $0, low, high, 0x5410;
            }""",
            "=r,r,r,r,r",
            [x0, x1, x2, x3],
            tl.int32,
            True,
            1,
        )
    else:
        return (x0 >> 16) | ((x1 >> 16) << 8) | ((x2 >> 16) << 16) | ((x3 >> 16) << 24)


@triton.jit
def _samples(c, steps, BLOCKS: tl.constexpr, HOPPER: tl.constexpr):
    """What :func:`_coefficients` gave -> decoded samples, 8 vectors over (block, row), with 18 fraction bits."""
    y = (
        _requantise(c[0], steps[0]),
        _requantise(c[1], steps[1]),
        _requantise(c[2], steps[2]),
        _requantise(c[3], steps[3]),
        _requantise(c[4], steps[4]),
        _requantise(c[5], steps[5]),
        _requantise(c[6], steps[6]),
        _requantise(c[7], steps[7]),
    )
    y = _inverse(y, 1 << 10)
    y = (y[0] >> 11, y[1] >> 11, y[2] >> 11, y[3] >> 11, y[4] >> 11, y[5] >> 11, y[6] >> 11, y[7] >> 11)
    # 128 is the level shift.
    y = _inverse(_exchange(y, BLOCKS), (128 << 18) + (1 << 17))
    return (
        _limit(y[0], (1 << 26) - 1, HOPPER),
        _limit(y[1], (1 << 26) - 1, HOPPER),
        _limit(y[2], (1 << 26) - 1, HOPPER),
        _limit(y[3], (1 << 26) - 1, HOPPER),
        _limit(y[4], (1 << 26) - 1, HOPPER),
        _limit(y[5], (1 << 26) - 1, HOPPER),
        _limit(y[6], (1 << 26) - 1, HOPPER),
        _limit(y[7], (1 << 26) - 1, HOPPER),
    )


@triton.jit
def _luma(r, g, b):
    return (19595 * r + 38470 * g + 7471 * b + 32768) >> 16


@triton.jit
def _cb(r, g, b):
    return (-11059 * r - 21709 * g + 32768 * b + (8388608 + 32767)) >> 16


@triton.jit
def _cr(r, g, b):
    return (32768 * r - 27439 * g - 5329 * b + (8388608 + 32767)) >> 16


@triton.jit
def _ycc_pixel(at, channel):
    """Y, Cb, Cr of one pixel a lane, level-shifted; at: pointers to R; channel: the stride of channels."""
    r = tl.load(at).to(tl.int32)
    g = tl.load(at + channel).to(tl.int32)
    b = tl.load(at + 2 * channel).to(tl.int32)
    return _luma(r, g, b) - 128, _cb(r, g, b) - 128, _cr(r, g, b) - 128


@triton.jit
def _chroma_pixel(at0, at1, col, last, step, channel, ROUND: tl.constexpr):
    """Cb and Cr of one 2x2 mean a lane, level-shifted; at0, at1: pointers to the two rows; col: the left column."""
    left = tl.minimum(col, last) * step
    right = tl.minimum(col + 1, last) * step
    _, cb00, cr00 = _ycc_pixel(at0 + left, channel)
    _, cb01, cr01 = _ycc_pixel(at0 + right, channel)
    _, cb10, cr10 = _ycc_pixel(at1 + left, channel)
    _, cb11, cr11 = _ycc_pixel(at1 + right, channel)
    # The level shift, a multiple of 4 in the sum, passes through the rounding.
    return (cb00 + cb01 + cb10 + cb11 + ROUND) >> 2, (cr00 + cr01 + cr10 + cr11 + ROUND) >> 2


@triton.jit
def _store(at, x, live, col, width, WORD: tl.constexpr, HOPPER: tl.constexpr):
    """Store 8 neighbouring samples a lane, WORD of them at a time.

    at: pointers to words of WORD bytes; x: samples with 16 fraction bits; live: lanes that are inside the image; col:
    the column of the first sample.
    """
    if WORD == 1:
        tl.store(at, (x[0] >> 16).to(tl.uint8), live & (col < width))
        tl.store(at + 1, (x[1] >> 16).to(tl.uint8), live & (col + 1 < width))
        tl.store(at + 2, (x[2] >> 16).to(tl.uint8), live & (col + 2 < width))
        tl.store(at + 3, (x[3] >> 16).to(tl.uint8), live & (col + 3 < width))
        tl.store(at + 4, (x[4] >> 16).to(tl.uint8), live & (col + 4 < width))
        tl.store(at + 5, (x[5] >> 16).to(tl.uint8), live & (col + 5 < width))
        tl.store(at + 6, (x[6] >> 16).to(tl.uint8), live & (col + 6 < width))
        tl.store(at + 7, (x[7] >> 16).to(tl.uint8), live & (col + 7 < width))
    else:
        low = _third_bytes(x[0], x[1], x[2], x[3], HOPPER)
        high = _third_bytes(x[4], x[5], x[6], x[7], HOPPER)
        if WORD == 4:
            tl.store(at, low, live)
            tl.store(at + 1, high, live & (col + 4 < width))
        else:
            tl.store(at, low.to(tl.uint32, bitcast=True).to(tl.int64) | (high.to(tl.int64) << 32), live)


@triton.jit
def _sixteen(x):
    """Samples with 18 fraction bits -> with 16."""
    return x[0] >> 2, x[1] >> 2, x[2] >> 2, x[3] >> 2, x[4] >> 2, x[5] >> 2, x[6] >> 2, x[7] >> 2


@triton.jit
def _whole(x):
    """Samples with 18 fraction bits -> whole numbers."""
    return x[0] >> 18, x[1] >> 18, x[2] >> 18, x[3] >> 18, x[4] >> 18, x[5] >> 18, x[6] >> 18, x[7] >> 18


@triton.jit
def _lanes(across, down, BLOCKS: tl.constexpr):
    """(image, block row, block column, index in the block 0..7) of this program's lanes; image is int64."""
    program = tl.program_id(0)
    tiles = tl.cdiv(across * down, BLOCKS)
    lane = tl.arange(0, 8 * BLOCKS)
    block = (program % tiles) * BLOCKS + lane // 8
    return (program // tiles).to(tl.int64), block // across, block % across, lane % 8


@triton.jit
def _bytes(word):
    return word & 255, (word >> 8) & 255, (word >> 16) & 255, (word >> 24) & 255


@triton.jit
def _doubled(plane, stride, row, word, height, width, BOX: tl.constexpr):
    """One halved chroma plane at twice its size: 8 neighbouring samples a lane.

    Samples outside the image are not right.

    plane: pointer to the plane as words of 4 samples; stride: words in a row; row: of the 8 samples, in the doubled
    plane; word: the one from which they come; height, width: of the halved plane. BOX: samples are repeated; else
    "fancy" upsampling (see the reference's ``_double``).
    """
    near = plane + tl.minimum(row >> 1, height - 1) * stride
    b0, b1, b2, b3 = _bytes(tl.load(near + word))
    if BOX:
        return b0, b0, b1, b1, b2, b2, b3, b3
    else:
        other = (row >> 1) + (row & 1) * 2 - 1
        far = plane + tl.maximum(tl.minimum(other, height - 1), 0) * stride
        f0, f1, f2, f3 = _bytes(tl.load(far + word))
        s0, s1, s2, s3 = b0 * 3 + f0, b1 * 3 + f1, b2 * 3 + f2, b3 * 3 + f3
        # Edges are repeated: the first sample is the one before it, the last is the one after it.
        before = tl.maximum(word - 1, 0)
        after = tl.minimum(word + 1, stride - 1)
        a = ((tl.load(near + before) >> 24) & 255) * 3 + ((tl.load(far + before) >> 24) & 255)
        a = tl.where(word == 0, s0, a)
        z = (tl.load(near + after) & 255) * 3 + (tl.load(far + after) & 255)
        left = width - 4 * word
        z1 = tl.where(left > 1, s1, s0)
        z2 = tl.where(left > 2, s2, s1)
        z3 = tl.where(left > 3, s3, s2)
        z4 = tl.where(left > 4, z, s3)
        return (
            (s0 * 3 + a + 8) >> 4,
            (s0 * 3 + z1 + 7) >> 4,
            (s1 * 3 + s0 + 8) >> 4,
            (s1 * 3 + z2 + 7) >> 4,
            (s2 * 3 + s1 + 8) >> 4,
            (s2 * 3 + z3 + 7) >> 4,
            (s3 * 3 + s2 + 8) >> 4,
            (s3 * 3 + z4 + 7) >> 4,
        )


@triton.jit
def _red(y, cr, HOPPER: tl.constexpr):
    """Red with 16 fraction bits, limited; y: with 18 fraction bits, cr: whole numbers."""
    return _limit(((y >> 18) << 16) + (cr * 91881 + (32768 - 128 * 91881)), (1 << 24) - 1, HOPPER)


@triton.jit
def _green(y, cb, cr, HOPPER: tl.constexpr):
    weighed = cb * -22554 + (cr * -46802 + (32768 + 128 * (22554 + 46802)))
    return _limit(((y >> 18) << 16) + weighed, (1 << 24) - 1, HOPPER)


@triton.jit
def _blue(y, cb, HOPPER: tl.constexpr):
    return _limit(((y >> 18) << 16) + (cb * 116130 + (32768 - 128 * 116130)), (1 << 24) - 1, HOPPER)


@triton.jit
def _grey_pixel(at):
    return tl.load(at).to(tl.int32) - 128


@triton.jit(do_not_specialize=_PIXELS_GENERAL)
def pixels_kernel(
    images,
    image_stride,
    channel_stride,
    row_stride,
    col_stride,
    height,
    width,
    versions,
    version_image_stride,
    version_stride,
    chroma,
    chroma_stride,
    qualities,
    quality_stride,
    many,
    some,
    tables,
    across,
    down,
    KIND: tl.constexpr,
    BOX: tl.constexpr,
    WORD: tl.constexpr,
    BLOCKS: tl.constexpr,
    HOPPER: tl.constexpr,
):
    """All versions of a tile of BLOCKS blocks of one image.

    Args:
        images: uint8 [n,C,height,width] with the four strides that follow (height, width: of the image).
        versions: the result as words of WORD bytes; its strides over images and versions, in words.
        chroma: KIND "halved": what :func:`chroma_kernel` made, int32 words of 4 samples [n,many,2,8*R,chroma_stride].
        qualities: uint8, of version q of image n at n * quality_stride + q; many of them, some for one program.
        tables: int64 [101,2,64], see :func:`_requantise`; by quality, for luma and chroma.
        across, down: blocks in a row and in a column of the image.
        KIND: "grey", "colour" (4:4:4) or "halved" (4:2:0).
        BOX: how halved chroma is doubled, see :func:`_doubled`.
        WORD: bytes that are stored at once: 8 or 4 if width is a multiple of it, else 1.
        HOPPER: the GPU is an NVIDIA one of compute capability 9.0 or more: use its instructions.
    """
    image, block_row, block_col, i = _lanes(across, down, BLOCKS)
    row = block_row * 8 + i
    col = block_col * 8
    live = row < height

    channel_stride = channel_stride.to(tl.int64)
    at = images + image * image_stride + tl.minimum(row, height - 1).to(tl.int64) * row_stride
    last = width - 1
    a0 = at + tl.minimum(col, last).to(tl.int64) * col_stride
    a1 = at + tl.minimum(col + 1, last).to(tl.int64) * col_stride
    a2 = at + tl.minimum(col + 2, last).to(tl.int64) * col_stride
    a3 = at + tl.minimum(col + 3, last).to(tl.int64) * col_stride
    a4 = at + tl.minimum(col + 4, last).to(tl.int64) * col_stride
    a5 = at + tl.minimum(col + 5, last).to(tl.int64) * col_stride
    a6 = at + tl.minimum(col + 6, last).to(tl.int64) * col_stride
    a7 = at + tl.minimum(col + 7, last).to(tl.int64) * col_stride
    if KIND == "grey":
        y = (
            _grey_pixel(a0),
            _grey_pixel(a1),
            _grey_pixel(a2),
            _grey_pixel(a3),
            _grey_pixel(a4),
            _grey_pixel(a5),
            _grey_pixel(a6),
            _grey_pixel(a7),
        )
        coef_y = _coefficients(y, BLOCKS)
    else:
        y0, b0, r0 = _ycc_pixel(a0, channel_stride)
        y1, b1, r1 = _ycc_pixel(a1, channel_stride)
        y2, b2, r2 = _ycc_pixel(a2, channel_stride)
        y3, b3, r3 = _ycc_pixel(a3, channel_stride)
        y4, b4, r4 = _ycc_pixel(a4, channel_stride)
        y5, b5, r5 = _ycc_pixel(a5, channel_stride)
        y6, b6, r6 = _ycc_pixel(a6, channel_stride)
        y7, b7, r7 = _ycc_pixel(a7, channel_stride)
        coef_y = _coefficients((y0, y1, y2, y3, y4, y5, y6, y7), BLOCKS)
        if KIND == "colour":
            coef_b = _coefficients((b0, b1, b2, b3, b4, b5, b6, b7), BLOCKS)
            coef_r = _coefficients((r0, r1, r2, r3, r4, r5, r6, r7), BLOCKS)

    first = tl.program_id(1) * some
    plane = height.to(tl.int64) * width // WORD
    to = versions + image * version_image_stride + first.to(tl.int64) * version_stride
    to += (row.to(tl.int64) * width + col) // WORD
    if KIND == "halved":
        half_height, half_width = (height + 1) // 2, (width + 1) // 2
        half_plane = (8 * ((down + 1) // 2)).to(tl.int64) * chroma_stride
        half = chroma + (image * many + first) * (2 * half_plane)
    for q in range(first, tl.minimum(first + some, many)):
        quality = tl.load(qualities + image * quality_stride + q).to(tl.int32)
        table = tables + quality * 128 + i
        y = _samples(coef_y, _steps(table), BLOCKS, HOPPER)
        if KIND == "grey":
            _store(to, _sixteen(y), live, col, width, WORD, HOPPER)
        else:
            if KIND == "colour":
                steps = _steps(table + 64)
                b = _whole(_samples(coef_b, steps, BLOCKS, HOPPER))
                r = _whole(_samples(coef_r, steps, BLOCKS, HOPPER))
            else:
                b = _doubled(half, chroma_stride, row, block_col, half_height, half_width, BOX)
                r = _doubled(half + half_plane, chroma_stride, row, block_col, half_height, half_width, BOX)
                half += 2 * half_plane
            red = (
                _red(y[0], r[0], HOPPER),
                _red(y[1], r[1], HOPPER),
                _red(y[2], r[2], HOPPER),
                _red(y[3], r[3], HOPPER),
                _red(y[4], r[4], HOPPER),
                _red(y[5], r[5], HOPPER),
                _red(y[6], r[6], HOPPER),
                _red(y[7], r[7], HOPPER),
            )
            _store(to, red, live, col, width, WORD, HOPPER)
            green = (
                _green(y[0], b[0], r[0], HOPPER),
                _green(y[1], b[1], r[1], HOPPER),
                _green(y[2], b[2], r[2], HOPPER),
                _green(y[3], b[3], r[3], HOPPER),
                _green(y[4], b[4], r[4], HOPPER),
                _green(y[5], b[5], r[5], HOPPER),
                _green(y[6], b[6], r[6], HOPPER),
                _green(y[7], b[7], r[7], HOPPER),
            )
            _store(to + plane, green, live, col, width, WORD, HOPPER)
            blue = (
                _blue(y[0], b[0], HOPPER),
                _blue(y[1], b[1], HOPPER),
                _blue(y[2], b[2], HOPPER),
                _blue(y[3], b[3], HOPPER),
                _blue(y[4], b[4], HOPPER),
                _blue(y[5], b[5], HOPPER),
                _blue(y[6], b[6], HOPPER),
                _blue(y[7], b[7], HOPPER),
            )
            _store(to + 2 * plane, blue, live, col, width, WORD, HOPPER)
        to += version_stride


@triton.jit(do_not_specialize=_CHROMA_GENERAL)
def chroma_kernel(
    images,
    image_stride,
    channel_stride,
    row_stride,
    col_stride,
    height,
    width,
    chroma,
    qualities,
    quality_stride,
    many,
    some,
    tables,
    across,
    down,
    BLOCKS: tl.constexpr,
    HOPPER: tl.constexpr,
):
    """Decoded halved chroma planes of a tile of BLOCKS chroma blocks of one image: the first half of 4:2:0.

    Args: as for :func:`pixels_kernel`, but across and down count chroma blocks, and chroma, int64, is written: words of
    8 samples [n,many,2,8*down,across].
    """
    image, block_row, block_col, i = _lanes(across, down, BLOCKS)
    row = block_row * 8 + i
    # Rows are repeated before this step to an even number, after it to whole blocks; columns only before it.
    above = tl.minimum(row, (height + 1) // 2 - 1) * 2
    channel_stride = channel_stride.to(tl.int64)
    base = images + image * image_stride
    at0 = base + above.to(tl.int64) * row_stride
    at1 = base + tl.minimum(above + 1, height - 1).to(tl.int64) * row_stride
    col = (block_col * 16).to(tl.int64)
    last = width - 1
    b0, r0 = _chroma_pixel(at0, at1, col, last, col_stride, channel_stride, 1)
    b1, r1 = _chroma_pixel(at0, at1, col + 2, last, col_stride, channel_stride, 2)
    b2, r2 = _chroma_pixel(at0, at1, col + 4, last, col_stride, channel_stride, 1)
    b3, r3 = _chroma_pixel(at0, at1, col + 6, last, col_stride, channel_stride, 2)
    b4, r4 = _chroma_pixel(at0, at1, col + 8, last, col_stride, channel_stride, 1)
    b5, r5 = _chroma_pixel(at0, at1, col + 10, last, col_stride, channel_stride, 2)
    b6, r6 = _chroma_pixel(at0, at1, col + 12, last, col_stride, channel_stride, 1)
    b7, r7 = _chroma_pixel(at0, at1, col + 14, last, col_stride, channel_stride, 2)
    coef_b = _coefficients((b0, b1, b2, b3, b4, b5, b6, b7), BLOCKS)
    coef_r = _coefficients((r0, r1, r2, r3, r4, r5, r6, r7), BLOCKS)

    first = tl.program_id(1) * some
    live = block_row < down
    plane = (8 * down).to(tl.int64) * across
    to = chroma + (image * many + first) * (2 * plane) + row.to(tl.int64) * across + block_col
    for q in range(first, tl.minimum(first + some, many)):
        quality = tl.load(qualities + image * quality_stride + q).to(tl.int32)
        steps = _steps(tables + quality * 128 + 64 + i)
        # Whole blocks: the width is that of the plane.
        _store(to, _sixteen(_samples(coef_b, steps, BLOCKS, HOPPER)), live, 0, 8, 8, HOPPER)
        _store(to + plane, _sixteen(_samples(coef_r, steps, BLOCKS, HOPPER)), live, 0, 8, 8, HOPPER)
        to += 2 * plane
