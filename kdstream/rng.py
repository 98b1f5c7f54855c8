"""Random numbers as a pure function of keys: the source of every draw of the stream and of the objectives.

A draw never depends on what was drawn before, hence not on the number of processes, workers or restarts. Integers are
mixed by the finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from kdstream.batch import Batch


def _signed(value: int) -> int:
    """The 64-bit pattern of ``value`` as torch's int64 reads it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def mix(value: Tensor) -> Tensor:
    """SplitMix64's bijection on 64-bit integers; int64 of any shape -> int64, the same on every device."""
    value = value + _GAMMA  # a tensor of our own: the rest works in place, which for many numbers is much faster
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        value.bitwise_xor_(_shifted(value, shift)).mul_(factor)
    return value.bitwise_xor_(_shifted(value, 31))


def _shifted(value: Tensor, by: int) -> Tensor:
    """``value`` shifted right as an unsigned number (torch's own shift repeats the sign); a new tensor."""
    return (value >> by).bitwise_and_((1 << (64 - by)) - 1)


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


def keys(batch: Batch) -> Tensor:
    """The samples' random keys, int64 [N]: the batch's, or its indices where it has none."""
    return batch.index if batch.rng_key is None else batch.rng_key


def words(key: Tensor, count: int, salt: str) -> Tensor:
    """Independent random integers for every sample.

    Args:
        key: int64 [N], ``Batch.rng_key``.
        count: how many a sample gets.
        salt: the name of the draw; different names give independent numbers from the same key.

    Returns:
        int64 [N, count], every bit random, identical on every device.
    """
    stream = mix(key ^ zlib.crc32(salt.encode()))
    counter = torch.arange(count, device=key.device)
    return mix(stream[:, None] ^ mix(counter)[None, :])


def uniform(key: Tensor, count: int, salt: str) -> Tensor:
    """Independent uniform numbers for every sample.

    Args:
        key: int64 [N], ``Batch.rng_key``.
        count: how many numbers a sample gets.
        salt: the name of the draw; different names give independent numbers from the same key.

    Returns:
        float32 [N, count] in [0, 1), multiples of 2^-24, bit-identical on every device.
    """
    return _shifted(words(key, count, salt), 40).to(torch.float32) * 2.0**-24
