"""Random numbers of a term as a function of the samples' keys: the same whatever the number of processes."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from kdstream.types import Batch

_ODD = -0x61C8864680B583EB
_FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""The constants of SplitMix64 (Steele, Lea & Flood 2014), as torch's int64 reads their 64 bits."""


def keys(batch: Batch) -> Tensor:
    """The samples' random keys, int64 [N]: the batch's, or its indices where it has none."""
    return batch.index if batch.rng_key is None else batch.rng_key


def uniform(key: Tensor, count: int, salt: str) -> Tensor:
    """Independent uniform numbers for every sample.

    Args:
        key: int64 [N], see :func:`keys`.
        count: how many numbers a sample gets.
        salt: the name of the draw; another name gives independent numbers.

    Returns:
        float32 [N,count] in [0, 1), multiples of 2^-24, bit-identical on every device.
    """
    own = _mix(key ^ zlib.crc32(salt.encode()))
    bits = _mix(own[:, None] ^ _mix(torch.arange(count, device=key.device)))
    return _shifted(bits, 40).to(torch.float32) * 2.0**-24


def _mix(value: Tensor) -> Tensor:
    value = value + _ODD
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        value = (value ^ _shifted(value, shift)) * factor
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, by: int) -> Tensor:
    """``value`` shifted right as an unsigned number (torch's own shift repeats the sign)."""
    return (value >> by) & ((1 << (64 - by)) - 1)
