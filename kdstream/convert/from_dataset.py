"""A torch data set of (image, label) as a split: any object with a length and items."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kdstream.convert.split import Source, Split
from kdstream.convert.spooled import Given, Spool
from kdstream.errors import UserError


def is_dataset(found: Any) -> bool:
    """Whether an object looks like a map-style data set."""
    plain = isinstance(found, str | bytes | list | tuple | dict)
    return not plain and hasattr(type(found), "__getitem__") and hasattr(type(found), "__len__")


def from_datasets(name: str, datasets: dict[str, Any], classes: Sequence[str] | None = None) -> Source:
    """Data sets of (image, label), a split each, read once from the first to the last item.

    Args:
        name: of the source.
        datasets: split -> map-style data set. Images are PIL images, uint8 arrays [H,W] or [H,W,3], uint8 tensors
            [3,H,W] or [1,H,W], or what torchvision's ToTensor makes of them; they are stored without loss, as PNG.
            Labels are whole numbers from 0.
        classes: their names; default: the data sets' attribute ``classes``, else numbers.

    Raises:
        UserError: items of another kind, random ones, a label without a class.
    """
    spool = Spool()
    made: dict[str, Split] = {}
    for split, dataset in datasets.items():
        if not is_dataset(dataset):
            raise UserError(
                f"{name}: {split} is of type {type(dataset).__name__}: a data set has a length and items (image, label)"
            )
        made[split] = spool.take(split, _items(dataset, f"{name}, {split}"))
    told = classes or next((c for d in datasets.values() if (c := getattr(d, "classes", None))), None)
    largest = max((int(split.labels.max()) for split in made.values() if len(split)), default=-1)
    names = [str(number) for number in range(largest + 1)] if told is None else [str(one) for one in told]
    if largest >= len(names):
        raise UserError(f"{name} has a label {largest}, but {len(names)} classes: labels are numbers from 0")
    return Source(name, names, made)


def _items(dataset: Any, what: str) -> Iterator[Given]:
    for i in range(len(dataset)):
        data, label = _item(dataset, i, what)
        if i == 0 and _item(dataset, i, what)[0] != data:
            raise UserError(
                f"{what}: item 0 is another image each time: leave random transforms out, augment() in the stream "
                "draws anew in every epoch"
            )
        yield Given((f"{i:08d}",), data, "png", label)


def _item(dataset: Any, i: int, what: str) -> tuple[bytes, int]:
    item = dataset[i]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise UserError(f"{what}: item {i} is no pair (image, label), but of type {type(item).__name__}")
    image, label = item
    number = getattr(label, "item", lambda: label)()
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise UserError(f"{what}: the label of item {i} is {label!r}, not a whole number from 0")
    buffer = io.BytesIO()
    try:
        _picture(image).save(buffer, "PNG")
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{what}: item {i} holds no image ({error})") from error
    return buffer.getvalue(), number


def _picture(image: Any) -> Image.Image:
    """An image as Pillow has it, pixels unchanged."""
    if isinstance(image, Image.Image):
        return image if image.mode in ("L", "RGB", "RGBA", "LA", "P", "1") else image.convert("RGB")
    channels_first = hasattr(image, "detach")
    values = image.detach().cpu().numpy() if channels_first else image
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{type(image).__name__} is no PIL image, array or tensor")
    if channels_first and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.dtype.kind == "f":  # what ToTensor makes of bytes
        levels = np.rint(values * 255)
        if values.size and (not np.isfinite(values).all() or np.abs(values * 255 - levels).max() > 1e-2):
            raise ValueError("its floats are no bytes over 255: give the pixels before they are normalised")
        values = levels
        if values.size and (values.min() < 0 or values.max() > 255):
            raise ValueError("its floats leave 0..1: give the pixels before they are normalised")
        values = values.astype(np.uint8)
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (3, 4)):
        raise ValueError(
            f"{values.dtype} {list(values.shape)} is neither [H,W] nor [H,W,3] (tensors: [3,H,W]) of bytes"
        )
    return Image.fromarray(np.ascontiguousarray(values))
