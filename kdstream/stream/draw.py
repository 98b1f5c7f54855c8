"""Random numbers as a pure function of keys: the source of every draw in the stream.

A draw never depends on what was drawn before, hence not on the number of processes, workers or restarts. Integers are
mixed by the finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The 64-bit pattern of ``value`` as torch's int64 reads it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def mix(value: Tensor) -> Tensor:
    """SplitMix64's bijection on 64-bit integers; int64 of any shape -> int64, the same on every device."""
    value = value + _GAMMA
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        value = (value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return value ^ ((value >> 31) & ((1 << 33) - 1))


def sample_keys(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Random keys of samples in one epoch.

    Args:
        seed: any integer.
        epoch: counted from 0.
        index: int64 [N], positions in the data set.

    Returns:
        int64 [N].
    """
    run = mix(torch.tensor(_signed(seed)))
    return mix(mix(run ^ epoch).to(index.device) ^ index)


def uniform(key: Tensor, count: int, salt: str) -> Tensor:
    """Independent uniform numbers for every sample.

    Args:
        key: int64 [N], ``Batch.rng_key``.
        count: how many numbers a sample gets.
        salt: the name of the draw; different names give independent numbers from the same key.

    Returns:
        float32 [N, count] in [0, 1), multiples of 2^-24, bit-identical on every device.
    """
    stream = mix(key ^ zlib.crc32(salt.encode()))
    counter = torch.arange(count, device=key.device)
    bits = mix(stream[:, None] ^ mix(counter)[None, :])
    return ((bits >> 40) & ((1 << 24) - 1)).to(torch.float32) * 2.0**-24
