"""erasing: a box of some images is painted over (Zhong et al. 2017, arXiv:1708.04896)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdstream.batch import Batch
from kdstream.errors import UserError
from kdstream.exact import exact
from kdstream.rng import keys, uniform
from kdstream.stream.mix import check_number
from kdstream.stream.normalize import to_bytes
from kdstream.stream.stage import Stage, given

FILLS = ("pixel", "color", "mean")
TRIES = 10


def erasing(
    p: float = 0.25, fill: str = "pixel", area: Sequence[float] = (0.02, 1 / 3), ratio: Sequence[float] = (0.3, 1 / 0.3)
) -> Stage:
    """Paint over a box of each chosen image; the defaults are DeiT's (Touvron et al. 2021), as timm has them.

    All versions of an image get the same box and the same paint. Values are cut to the range of pixels.

    Args:
        p: share of the images, 0..1.
        fill: "pixel": for every pixel and channel a number of its own, normal with the data set's mean and deviation;
            "color": one such for each channel of the box; "mean": the data set's mean.
        area: smallest and largest share of the image that the box takes, drawn uniformly.
        ratio: smallest and largest quotient of the box's height and width, drawn log-uniformly; of ten tries the first
            that is smaller than the image counts, and where none is, nothing is painted over.

    Raises:
        UserError: a setting out of range.
    """
    check_number("erasing", "p", p, 0, 1)
    if fill not in FILLS:
        raise UserError(f"erasing: fill is {fill!r}; it is one of {', '.join(FILLS)}")
    for what, pair, most in (("area", area, 1.0), ("ratio", ratio, 1e3)):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(f"erasing: {what} is {pair!r}; it is the least and the largest, as [0.02, 0.33]")
        check_number("erasing", f"{what}, the least,", pair[0], 1e-3, most)
        check_number("erasing", f"{what}, the largest,", pair[1], pair[0], most)
    settings = {"p": p, "fill": fill, "area": tuple(area), "ratio": tuple(ratio)}
    return Stage(_erasing, "batch", (), settings, random=True)


def _erasing(
    batches: Iterator[Batch],
    p: float,
    fill: str,
    area: Sequence[float],
    ratio: Sequence[float],
    mean: Sequence[float] = given,
    std: Sequence[float] = given,
) -> Iterator[Batch]:
    for batch in batches:
        channels, height, width = batch.image.shape[1:]
        rows = (uniform(keys(batch), 1, "erasing")[:, 0] < p).nonzero()[:, 0]
        key = keys(batch)[rows]
        inside = boxes(key, height, width, area, ratio)
        centre, spread = (torch.tensor(one, device=key.device)[None, :, None, None] for one in (mean, std))
        paint = centre.expand(len(rows), -1, height, width)
        if fill != "mean" and len(rows):
            shape = (channels, height, width) if fill == "pixel" else (channels, 1, 1)
            draws = uniform(key, math.prod(shape), f"erasing.{fill}").view(-1, *shape)
            paint = (centre + spread * torch.special.ndtri(draws + 2.0**-25)).clamp(0, 1)

        def view(images: Tensor, rows: Tensor = rows, inside: Tensor = inside, paint: Tensor = paint) -> Tensor:
            images = images.clone()
            colour = to_bytes(paint.clone()) if images.dtype == torch.uint8 else paint.to(images.dtype)
            images[rows] = torch.where(inside, colour, images[rows])
            return images

        yield batch.map_views(view)


_erasing.__name__ = "erasing"


def boxes(key: Tensor, height: int, width: int, area: Sequence[float], ratio: Sequence[float]) -> Tensor:
    """Where an image is painted over, bool [N,1,H,W].

    Args:
        key: int64 [N], the samples' random keys.
        height, width: of the images.
        area, ratio: see :func:`erasing`.
    """
    draws = exact(uniform(key, 2 * TRIES + 2, "erasing.box"))
    share = area[0] + (area[1] - area[0]) * draws[:, :TRIES]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    quotient = (low + (high - low) * draws[:, TRIES : 2 * TRIES]).exp()
    tall, wide = ((share * height * width * one).sqrt().round().long() for one in (quotient, 1 / quotient))
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(dim=1, keepdim=True)  # of several largest, the first
    tall, wide = (one.gather(1, first) * fits.any(dim=1, keepdim=True) for one in (tall, wide))
    top = (draws[:, 2 * TRIES, None] * (height - tall + 1)).long()
    left = (draws[:, 2 * TRIES + 1, None] * (width - wide + 1)).long()
    top, left, tall, wide = (one.to(key.device) for one in (top, left, tall, wide))
    y, x = torch.arange(height, device=key.device)[None], torch.arange(width, device=key.device)[None]
    in_rows, in_columns = (y >= top) & (y < top + tall), (x >= left) & (x < left + wide)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
