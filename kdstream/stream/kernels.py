"""Loops on the processor for what torch has no fast form of: the order of samples, and crops.

Each equals its plain form in torch bit for bit (:func:`kdstream.stream.plan.permute`,
:func:`kdstream.stream.augment.gathered`), which serves where numba is missing, and on accelerators. numba makes them
(:mod:`kdstream.stream.sample_kernels`).
"""

from __future__ import annotations

import importlib
import zlib
from types import ModuleType

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
    _kernels().permute(value.numpy().view(np.uint64), size, key & ((1 << 64) - 1), rounds)
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
    _kernels().crop(arrays[0], tuple(images.shape), bits, zlib.crc32(salt.encode()), pad, reflect, flip, arrays[1])
    return result


def _kernels() -> ModuleType:
    """The loops, compiled; importing them (and numba) takes long, so it waits for the first call."""
    return importlib.import_module("kdstream.stream.sample_kernels")
