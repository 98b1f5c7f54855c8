"""The JPEG round trip on the processor: vector code made by numba, the pixels of the reference, many times faster."""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from kdstream.errors import UserError
from kdstream.jpeg.reference import Subsampling, check_images, check_qualities, check_subsampling

_PIECE = 1 << 17
"""4:2:0: about how many pixels are worked on at once; with their coefficients they stay in a core's own cache."""
_FEWEST_ROWS = 64
"""4:2:0: fewest rows in which a large image is cut."""
_ALIGN = 64
"""Bytes of a cache line: no vector of the workspace lies in two."""
_SAMPLES_FOR_A_THREAD = 1 << 20
"""Fewest samples of the result for which another thread is worth its start."""


def available() -> bool:
    """Whether numba can be imported and the processor is one that the kernel is written for (all but big-endian)."""
    try:
        found = importlib.util.find_spec("numba") is not None
    except ValueError:  # A module set to None: who did it wants it not to be found.
        found = False
    return found and sys.byteorder == "little"


def roundtrip(
    images: Tensor,
    qualities: Sequence[int] | Tensor,
    subsampling: Subsampling = "4:4:4",
) -> Tensor:
    """Images after JPEG compression and decompression: as :func:`kdstream.jpeg.reference.roundtrip`, bit for bit.

    Uses ``torch.get_num_threads()`` threads for large batches, and only the caller's in a DataLoader's workers. The
    threads live as long as the call, hence forking a process afterwards is safe. Besides the result, a thread needs
    some tens of KB; for 4:2:0 about 1 MB (more only for images of many thousand columns).

    The first call in a process loads the kernel (about a second); the first one on a machine compiles it (10 to 20
    seconds), which is kept in numba's cache folder.

    Args:
        images: uint8 [N,C,H,W] in main memory, C = 1 (grey) or 3 (RGB), H, W >= 1, any strides.
        qualities: Q integers 0..100 for all images, or an integer tensor [N,Q]: Q qualities for each image.
        subsampling: of the chroma planes of RGB images: "4:4:4" = none, "4:2:0" = halved both ways. Without effect
            on grey images.

    Returns:
        uint8 [N,Q,C,H,W], contiguous.

    Raises:
        UserError: images of another type, shape or device, no qualities, qualities of another type, shape or range,
            an unknown subsampling.
    """
    check_images(images)
    if images.device.type != "cpu":
        raise UserError(f"the JPEG round trip's backend 'cpu' got images on {images.device}: use backend 'auto'")
    check_subsampling(subsampling)
    asked = check_qualities(qualities, len(images)).cpu().contiguous()
    count = asked.shape[1]
    result = torch.empty(len(images), count, *images.shape[1:], dtype=torch.uint8)
    if result.numel() == 0:
        return result
    number, channels, height, width = images.shape
    kernel = _kernel()
    halved = subsampling == "4:2:0" and channels == 3
    extra: tuple[int, ...] = ()
    run = kernel.roundtrip_full
    if halved:
        many, band = _piece(height, width)
        run, extra = kernel.roundtrip_halved, (many, band)
        jobs = -(-number // many) * -(-height // (16 * band))
        room = kernel.halved_workspace(width, many, band)
    else:
        jobs = -(-number * -(-height // 8) * -(-width // 8) // kernel.LANES)
        room = kernel.WORKSPACE
    tables = _words()
    of_image = count if len(asked) > 1 else 0

    def work(first: int, last: int, space: Tensor) -> None:
        run(
            images.data_ptr(),
            images.stride(),
            result.data_ptr(),
            (number, channels, height, width),
            asked.data_ptr(),
            of_image,
            count,
            tables.data_ptr(),
            -(-space.data_ptr() // _ALIGN) * _ALIGN,
            *extra,
            first,
            last,
        )

    _share(work, jobs, _threads(result.numel()), room)
    return result


def _kernel() -> ModuleType:
    """The compiled kernel; importing it (and numba) takes long, so it waits for the first call."""
    return importlib.import_module("kdstream.jpeg.cpu_kernel")


@functools.cache
def _words() -> Tensor:
    """The kernel's quantisation tables for all qualities."""
    return importlib.import_module("kdstream.jpeg.cpu_blocks").quantisation_words()


def _piece(height: int, width: int) -> tuple[int, int]:
    """4:2:0: how many images, and how many times 16 rows of them, are worked on at once."""
    a_row = 16 * -(-width // 16)
    rows = 16 * -(-height // 16)
    if a_row * rows <= _PIECE:
        return _PIECE // (a_row * rows), rows // 16
    return 1, min(rows, max(_FEWEST_ROWS, _PIECE // a_row)) // 16


def _threads(samples: int) -> int:
    """How many threads to use for a result of so many samples."""
    if torch.utils.data.get_worker_info() is not None:
        return 1
    return max(1, min(torch.get_num_threads(), samples // _SAMPLES_FOR_A_THREAD))


def _share(work: Callable[[int, int, Tensor], None], jobs: int, threads: int, room: int) -> None:
    """Run ``work(first, last, workspace)`` so that all jobs are done, in so many threads."""
    threads = min(threads, jobs)
    bounds = [jobs * i // threads for i in range(threads + 1)]
    spaces = [torch.empty(room + _ALIGN, dtype=torch.uint8) for _ in range(threads)]
    others = [
        threading.Thread(target=work, args=(bounds[i], bounds[i + 1], spaces[i]), daemon=True)
        for i in range(1, threads)
    ]
    for thread in others:
        thread.start()
    work(bounds[0], bounds[1], spaces[0])
    for thread in others:
        thread.join()
