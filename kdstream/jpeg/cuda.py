"""The CUDA round trip: the reference's pixels from fused Triton kernels (see :mod:`kdstream.jpeg.cuda_kernels`)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from kdstream.errors import UserError
from kdstream.jpeg.reference import Subsampling, check_images, check_qualities, check_subsampling
from kdstream.jpeg.tables import quant_table

_WORKSPACE = 32 << 20
"""Bytes of halved chroma that 4:2:0 keeps between its two kernels: less than the second-level cache of a large GPU."""
_PROGRAMS = 1024
"""With fewer programs than this a large GPU is not full: then the versions of a tile are shared out among several."""
_BLOCKS = 16
"""Blocks of a program, unless images are smaller."""
_LEAST_BLOCKS = 4
"""Their rows are the lanes of one warp."""
_TO_TRY = ((8, 2), (16, 2), (16, 4), (32, 4), (32, 8), (64, 8))
"""Pairs of blocks and warps that :func:`fastest` compares."""


def available() -> bool:
    """Whether Triton can be imported, which :func:`roundtrip` needs. Does not say that there is a GPU."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def roundtrip(
    images: Tensor,
    qualities: Sequence[int] | Tensor,
    subsampling: Subsampling = "4:4:4",
    blocks: int | None = None,
    warps: int | None = None,
) -> Tensor:
    """Images after JPEG compression and decompression: what :func:`kdstream.jpeg.reference.roundtrip` gives.

    One kernel goes from uint8 to uint8 for all qualities: pixels are read once, colour conversion and forward DCT are
    done once, versions are written once. Colour images in 4:2:0 take two, since fancy upsampling needs the chroma of
    all blocks around: the first makes the halved chroma planes, in a workspace of 32 MB (or of one version of one
    image, where that is more), the second the rest.

    Args:
        images: uint8 [N,C,H,W], C = 1 (grey) or 3 (RGB), H, W >= 1, any strides, on a CUDA device (or, with
            ``TRITON_INTERPRET=1``, on the host). Fastest if W is a multiple of 8, then of 4.
        qualities: Q integers 0..100 for all images, or an integer tensor [N,Q]; best on the host: checking them waits
            for the device otherwise.
        subsampling: of the chroma planes of RGB images. Without effect on grey images.
        blocks: 8x8 blocks that a program works on, a power of 2.
        warps: of a program, a power of 2; every 4 blocks of 8 rows fill one. See :func:`fastest`.

    Returns:
        uint8 [N,Q,C,H,W] on the device of ``images``, contiguous.

    Raises:
        UserError: what the reference refuses; images that are not on a CUDA device; Triton missing.
    """
    check_images(images)
    check_subsampling(subsampling)
    asked = check_qualities(qualities, len(images))
    if not available():
        raise UserError("JPEG round trip on CUDA: Triton is not installed: use the reference or the CPU kernel")
    if images.device.type != "cuda" and not _interpreted():
        raise UserError(f"JPEG round trip on CUDA: images must be on a CUDA device, got {images.device}")

    count, channels, height, width = images.shape
    many = asked.shape[1]
    result = images.new_empty(count, many, channels, height, width)
    if count == 0:
        return result
    kind = "grey" if channels == 1 else "colour" if subsampling == "4:4:4" else "halved"
    asked = asked.to(images.device, torch.uint8).contiguous()
    if kind != "halved":
        images_at_a_time, versions_at_a_time, workspace = count, many, None
    else:
        chroma = 2 * _round_up((height + 1) // 2, 8) * _round_up((width + 1) // 2, 8)
        versions_at_a_time = max(1, min(many, _WORKSPACE // chroma))
        images_at_a_time = max(1, min(count, _WORKSPACE // (chroma * versions_at_a_time)))
        workspace = images.new_empty(images_at_a_time * versions_at_a_time * chroma)
    with torch.cuda.device(images.device) if images.is_cuda else contextlib.nullcontext():
        for n in range(0, count, images_at_a_time):
            for q in range(0, many, versions_at_a_time):
                theirs = asked[n : n + images_at_a_time] if len(asked) > 1 else asked
                _launch(
                    images[n : n + images_at_a_time],
                    theirs[:, q : q + versions_at_a_time],
                    result[n : n + images_at_a_time, q : q + versions_at_a_time],
                    kind,
                    workspace,
                    blocks,
                    warps,
                )
    return result


def fastest(images: Tensor, qualities: Sequence[int] | Tensor, subsampling: Subsampling = "4:4:4") -> tuple[int, int]:
    """The pair (blocks, warps) with which :func:`roundtrip` is fastest on these images' GPU.

    Takes seconds for each pair that was never compiled before. Arguments and errors: as for :func:`roundtrip`.
    """
    if images.device.type != "cuda":
        raise UserError(f"JPEG round trip on CUDA: times are taken on a CUDA device, got {images.device}")
    from triton.testing import do_bench

    def milliseconds(pair: tuple[int, int]) -> float:
        return do_bench(lambda: roundtrip(images, qualities, subsampling, *pair), return_mode="median")

    with torch.cuda.device(images.device):
        return min(_TO_TRY, key=milliseconds)


def _launch(
    images: Tensor,
    qualities: Tensor,
    versions: Tensor,
    kind: str,
    workspace: Tensor | None,
    blocks: int | None,
    warps: int | None,
) -> None:
    """Fill versions [n,q,C,H,W] from images [n,C,H,W] and qualities, uint8 [n or 1,q]."""
    from kdstream.jpeg.cuda_kernels import chroma_kernel, pixels_kernel

    count, _, height, width = images.shape
    many = qualities.shape[1]
    quality_stride = qualities.stride(0) if len(qualities) > 1 else 0
    tables = _tables(images.device)
    hopper = _has_hopper_instructions(images.device)

    def share(across: int, down: int) -> tuple[tuple[int, int], int, dict[str, int]]:
        """Grid, versions for one program, and shape of a program for planes of down x across blocks."""
        size = blocks or min(_BLOCKS, max(_LEAST_BLOCKS, 1 << (across * down - 1).bit_length()))
        programs = count * -(-across * down // size)
        some = -(-many // min(many, -(-_PROGRAMS // programs)))
        shape = {"BLOCKS": size, "num_warps": warps or max(1, size // 4)}
        return (programs, -(-many // some)), some, shape

    half_across, half_down = -(-width // 16), -(-height // 16)
    if workspace is not None:  # "halved", and no other kind
        grid, some, shape = share(half_across, half_down)
        chroma_kernel[grid](
            images,
            *images.stride(),
            height,
            width,
            workspace.view(torch.int64),
            qualities,
            quality_stride,
            many,
            some,
            tables,
            half_across,
            half_down,
            HOPPER=hopper,
            enable_fp_fusion=False,
            **shape,
        )
    word = 8 if width % 8 == 0 else 4 if width % 4 == 0 else 1
    words = versions.view({8: torch.int64, 4: torch.int32, 1: torch.uint8}[word])
    across, down = -(-width // 8), -(-height // 8)
    grid, some, shape = share(across, down)
    pixels_kernel[grid](
        images,
        *images.stride(),
        height,
        width,
        words,
        words.stride(0),
        words.stride(1),
        # Something has to be given where there is no halved chroma.
        tables if workspace is None else workspace.view(torch.int32),
        2 * half_across,
        qualities,
        quality_stride,
        many,
        some,
        tables,
        across,
        down,
        KIND=kind,
        BOX=kind == "halved" and width <= 4,
        WORD=word,
        HOPPER=hopper,
        enable_fp_fusion=False,
        **shape,
    )


@functools.lru_cache(maxsize=16)
def _tables(device: torch.device) -> Tensor:
    """For all qualities 0..100, int64 [101,2,64]: what quantisation needs, see the kernels' ``_requantise``."""
    qualities = torch.arange(101)
    steps = torch.stack([quant_table(qualities, chroma) for chroma in (False, True)], 1).flatten(2)
    reciprocals = (1 / (8 * steps).to(torch.float32)).view(torch.int32).to(torch.int64)
    return (steps << 32 | reciprocals).to(device)


def _has_hopper_instructions(device: torch.device) -> bool:
    # AMD's GPUs are called "cuda" as well, and have capabilities of their own.
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def _interpreted() -> bool:
    """Whether Triton runs kernels on the host: TRITON_INTERPRET was set when they were imported."""
    from triton import JITFunction

    from kdstream.jpeg.cuda_kernels import pixels_kernel

    return not isinstance(pixels_kernel, JITFunction)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
