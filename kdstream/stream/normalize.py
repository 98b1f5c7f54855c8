"""normalize: pixels to standardised floats, once, last."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kdstream.batch import SMALLEST_STD, Batch
from kdstream.stream.stage import batch_stage, given


def to_unit(image: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [0,1]; floats pass through. Any shape."""
    return image.float() / 255 if image.dtype == torch.uint8 else image


def to_bytes(image: Tensor) -> Tensor:
    """Float in [0,1] -> uint8 0..255, rounded; uint8 passes through. Any shape."""
    return image if image.dtype == torch.uint8 else (image * 255).round_().clamp_(0, 255).to(torch.uint8)


def standardise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image - mean) / std by channel.

    Args:
        image: [..., 3, H, W], uint8 or float in [0,1].
        mean, std: by channel, of the image in [0,1]; a std below 1e-6 (all images alike) counts as 1e-6.

    Returns:
        float32 (or the float type of ``image``), same shape.
    """
    unit = to_unit(image)
    shift = _channels(tuple(mean), unit.dtype, unit.device)
    scale = _channels(tuple(max(value, SMALLEST_STD) for value in std), unit.dtype, unit.device)
    return (unit - shift if unit is image else unit.sub_(shift)).div_(scale)  # in memory of our own: twice as fast


@functools.lru_cache(maxsize=64)
def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[3,1,1]; made once, since each copy to a GPU would stop the queue."""
    return torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1)


@batch_stage(role="normalize")
def normalize(batches: Iterator[Batch], mean: Sequence[float] = given, std: Sequence[float] = given) -> Iterator[Batch]:
    """Standardise ``image`` by the data set's mean and standard deviation (in [0,1], from dataset.json).

    The last stage of a chain. Versions that no teacher has consumed stay as they are: the teacher standardises for
    itself.
    """
    for batch in batches:
        yield replace(batch, image=standardise(batch.image, mean, std))
