"""randaugment: a few operations drawn for each image, of one strength (Cubuk et al. 2020, arXiv:1909.13719).

Operations and strengths are those of timm's "rand-m9-n2-mstd0.5-inc1", which DeiT trains with (Touvron et al. 2021,
arXiv:2012.12877), and of the ``timm_increasing`` policies of mmpretrain: the larger the magnitude, the stronger each
operation. Colours are changed by kornia; turns, shears and shifts sample with torch's bicubic kernel where Pillow does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdstream.batch import Batch
from kdstream.errors import UserError
from kdstream.rng import keys, uniform
from kdstream.stream.mix import check_number
from kdstream.stream.normalize import to_unit
from kdstream.stream.stage import Stage, given

OPERATIONS = (
    *("autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add"),
    *("color", "contrast", "brightness", "sharpness"),
    *("rotate", "shear_x", "shear_y", "translate_x", "translate_y"),
)


def randaugment(n: int = 2, m: float = 9, std: float = 0.5, p: float = 0.5) -> Stage:
    """``n`` operations an image, drawn with replacement from :data:`OPERATIONS`, each applied with probability ``p``.

    Images become float in [0,1]. All versions of an image get the same operations with the same parameters. What an
    operation brings in from beyond the border is the data set's mean.

    Args:
        n: operations, >= 1.
        m: magnitude, 0..10.
        std: deviation of the normal distribution that each operation's magnitude is drawn from, then cut to 0..10.
        p: probability that a drawn operation is applied; timm's 0.5 by default, 1 in the paper.

    Raises:
        UserError: a setting out of range.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UserError(f"randaugment: n is {n!r}; it is a number of operations, 1 or more")
    for what, value, most in (("m", m, 10), ("std", std, 100), ("p", p, 1)):
        check_number("randaugment", what, value, 0, most)
    return Stage(_randaugment, "batch", (), {"n": n, "m": m, "std": std, "p": p}, random=True)


def _randaugment(
    batches: Iterator[Batch], n: int, m: float, std: float, p: float, mean: Sequence[float] = given
) -> Iterator[Batch]:
    for batch in batches:
        chosen, level = draw(keys(batch), n, m, std, p)
        device = batch.image.device
        fill = torch.tensor(mean, device=device)
        # Which images get an operation is settled once, not for every version.
        groups = [
            (operation, rows.to(device), level[rows, layer].to(device))
            for layer in range(n)
            for number, operation in enumerate(OPERATIONS)
            if len(rows := (chosen[:, layer] == number).nonzero()[:, 0])
        ]

        def view(images: Tensor, groups: list[tuple[str, Tensor, Tensor]] = groups, fill: Tensor = fill) -> Tensor:
            images = to_unit(images).clone()
            for operation, rows, levels in groups:
                images[rows] = apply(operation, images[rows], levels, fill)
            return images

        yield batch.map_views(view)


_randaugment.__name__ = "randaugment"


def draw(key: Tensor, n: int, m: float, std: float, p: float) -> tuple[Tensor, Tensor]:
    """What is drawn for every sample, on the CPU.

    Args:
        key: int64 [N], the samples' random keys.
        n, m, std, p: see :func:`randaugment`.

    Returns:
        Numbers in :data:`OPERATIONS`, -1 = none, int64 [N,n]; and strengths, float32 [N,n], -1..1: a tenth of the
        magnitude, with the sign of those operations that have a direction.
    """
    draws = uniform(key, 4 * n, "randaugment").cpu().unflatten(1, (n, 4))
    chosen = (draws[..., 0] * len(OPERATIONS)).long().masked_fill(draws[..., 1] >= p, -1)
    noise = torch.special.ndtri(draws[..., 2].double() + 2.0**-25)
    level = (m + std * noise).clamp(0, 10) / 10
    return chosen, torch.where(draws[..., 3] < 0.5, level, -level).float()


def apply(operation: str, images: Tensor, level: Tensor, fill: Tensor) -> Tensor:
    """One operation on all images.

    Args:
        operation: of :data:`OPERATIONS`.
        images: float [N,3,H,W] in [0,1].
        level: float [N], -1..1; where the operation has no direction, its magnitude counts.
        fill: float [3], the colour beyond the border.

    Returns:
        float [N,3,H,W] in [0,1].
    """
    from kornia import enhance  # slow to import, and only this stage needs it

    size = level.abs()
    if operation in ("color", "contrast", "brightness", "sharpness"):
        adjust = {
            "color": enhance.adjust_saturation_with_gray_subtraction,
            "contrast": enhance.adjust_contrast_with_mean_subtraction,
            "brightness": enhance.adjust_brightness_accumulative,
            "sharpness": enhance.sharpness,
        }[operation]
        return adjust(images, (1 + 0.9 * level).clamp(min=0.1)).clamp(0, 1)
    if operation == "autocontrast":
        low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
        return torch.where(high > low, enhance.normalize_min_max(images, eps=1e-12), images).clamp(0, 1)
    if operation == "equalize":
        return enhance.equalize(images)
    if operation == "invert":
        return enhance.invert(images)
    if operation == "posterize":
        return enhance.posterize(images, 4 - (4 * size).long())
    if operation == "solarize":
        # Halfway between two bytes, so that a byte is below it or not whatever the rounding.
        return enhance.solarize(images, (256 - (256 * size).floor() - 0.5) / 255)
    if operation == "solarize_add":
        added = (images + ((110 * size).floor() / 255)[:, None, None, None]).clamp(max=1)
        return torch.where(images < 127.5 / 255, added, images)
    return _sampled(images, _sources(operation, level, *images.shape[-2:]), fill)


def _sources(operation: str, level: Tensor, height: int, width: int) -> Tensor:
    """[N,2,3]: where in the image a pixel of the result comes from, (x, y, 1) -> (x, y), as Pillow has it."""
    one, zero = torch.ones_like(level), torch.zeros_like(level)
    rows: Sequence[Sequence[Tensor]] = ((one, zero, zero), (zero, one, zero))
    if operation == "rotate":
        angle = level * math.radians(30)
        cos, sin = angle.cos(), angle.sin()
        x, y = width / 2, height / 2
        rows = ((cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))
    elif operation == "shear_x":
        rows = ((one, 0.3 * level, zero), (zero, one, zero))
    elif operation == "shear_y":
        rows = ((one, zero, zero), (0.3 * level, one, zero))
    elif operation == "translate_x":
        rows = ((one, zero, 0.45 * width * level), (zero, one, zero))
    elif operation == "translate_y":
        rows = ((one, zero, zero), (zero, one, 0.45 * height * level))
    return torch.stack([torch.stack(list(row), dim=1) for row in rows], dim=1)


def _sampled(images: Tensor, sources: Tensor, fill: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device) + 0.5)[None, :, None]
    x = (torch.arange(width, device=images.device) + 0.5)[None, None, :]
    # Sums, not a matrix product, whose last bit may depend on how many images there are.
    (a, b, c), (d, e, f) = (row[..., None, None].unbind(1) for row in sources.unbind(1))
    grid = torch.stack([2 * (a * x + b * y + c) / width - 1, 2 * (d * x + e * y + f) / height - 1], dim=-1)
    inside = (grid.abs() <= 1).all(dim=-1)[:, None]
    sampled = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return torch.where(inside, sampled.clamp(0, 1), fill[None, :, None, None])
