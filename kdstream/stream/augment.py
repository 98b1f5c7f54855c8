"""augment: the same random view for the image and for every compressed version of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdstream.batch import Batch, Files, Sample
from kdstream.errors import UserError
from kdstream.jpeg import cuda
from kdstream.registry import nearest
from kdstream.rng import keys, uniform
from kdstream.stream import device_files, kernels
from kdstream.stream.normalize import to_unit
from kdstream.stream.stage import Chain, Stage, batch_stage, stage


def augment(kind: str, *args: object, **settings: object) -> Chain:
    """Views by a recipe's name.

    - ``augment("cifar", pad=4, mode="zeros", flip=True)``: pad on all sides, crop the original size at random, flip
      with probability 1/2; ``mode="reflect"`` pads by reflection.
    - ``augment("inception", size, scale=(0.08, 1), ratio=(3/4, 4/3), flip=True, jitter=None, exact=False)``: a random
      box resized to ``size`` x ``size``, flipped with probability 1/2 (Szegedy et al. 2015, "Going deeper with
      convolutions", section 6). ``jitter``: (brightness, contrast, saturation, hue) strengths as in torchvision's
      ColorJitter. After ``decode``, only the box is decoded; its pixels are within one grey level, on average, of those
      of the whole image cut by torchvision, which ``exact=True`` gives. ``on="device"``: readers decode whole images,
      or leave that to the accelerator (``decode(on=device)``), which cuts the same boxes out of them.
    - ``augment("eval", size, crop=0.875)``: shorter side resized to size / crop, central square cut out.

    The last two take ``interpolation="bicubic"``, as transformers are trained with, in place of "bilinear".

    Boxes are cut on the host, because photographs differ in size, unless ``on="device"`` asks for it; flips, crops and
    colour happen on the accelerator.

    Raises:
        UserError: another kind, or settings that the kind does not have.
    """
    kinds: dict[str, Callable[..., Chain]] = {"cifar": _cifar, "inception": _inception, "eval": _evaluation}
    if kind not in kinds:
        raise UserError(f"augment({kind}): there is no such augmentation; known: {', '.join(kinds)}")
    function = kinds[kind]
    known = inspect.signature(function).parameters
    for name in settings:
        if name not in known:
            near = nearest(name, known)
            near = f"{near} Its settings" if near.startswith("did") else "its settings"
            raise UserError(f"augment({kind}): unknown setting {name!r}: {near}: {', '.join(known)}")
    try:
        return function(*args, **settings)
    except TypeError as error:
        said = str(error).replace(f"_{kind}()", kind)
        raise UserError(f"augment({kind}): {said}; its settings: {', '.join(known)}") from None


def _cifar(pad: int = 4, mode: str = "zeros", flip: bool = True) -> Chain:
    if mode not in ("zeros", "reflect"):
        raise UserError(f"augment(cifar): mode is {mode!r}; it is 'zeros' or 'reflect'")
    if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
        raise UserError(f"augment(cifar): pad is {pad!r}; it is a number of pixels, 0 or more")
    return Chain() | crop_flip(pad=pad, mode=mode, flip=flip)


def _inception(
    size: int,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    flip: bool = True,
    jitter: Sequence[float] | None = None,
    interpolation: str = "bilinear",
    exact: bool = False,
    on: str = "host",
) -> Chain:
    pairs = all(isinstance(pair, Sequence) and len(pair) == 2 for pair in (scale, ratio))
    if not pairs or not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise UserError(f"augment(inception): scale {scale} must lie in (0, 1], ratio {ratio} above 0, low before high")
    if not isinstance(exact, bool):
        raise UserError(f"augment(inception): exact is {exact!r}; it is true or false")
    if on not in ("host", "device") or (exact and on == "device"):
        raise UserError(f"augment(inception): on is {on!r}; it is host, or device (which is exact, and never told so)")
    drawn = {"scale": tuple(scale), "ratio": tuple(ratio)}
    if on == "device":
        chain = Chain() | draw_boxes(**drawn) | cut_boxes(size=_side(size), **_kernel(interpolation))
    else:
        unusual = _kernel(interpolation) | ({"exact": True} if exact else {})
        chain = Chain() | random_box(size=_side(size), **drawn, **unusual)
    if flip:
        chain = chain | random_flip
    if jitter is not None:
        if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
            raise UserError("augment(inception): jitter is [brightness, contrast, saturation, hue], hue at most 0.5")
        chain = chain | color_jitter(strengths=tuple(jitter))
    return chain


def _evaluation(size: int, crop: float = 0.875, interpolation: str = "bilinear") -> Chain:
    if not 0 < crop <= 1:
        raise UserError(f"augment(eval): crop is {crop}; it is the share of the shorter side that is kept, in (0, 1]")
    return Chain() | center_box(size=_side(size), crop=crop, **_kernel(interpolation))


def _kernel(interpolation: str) -> dict[str, Any]:
    if interpolation not in ("bilinear", "bicubic"):
        raise UserError(f"augment: interpolation is {interpolation!r}; it is bilinear or bicubic")
    # Slow to import, and only boxes need it: once, here, and not by each reader.
    import torchvision.transforms.v2.functional  # noqa: F401

    # The usual one stays unsaid: coding plans are found by what their stages say.
    return {} if interpolation == "bilinear" else {"interpolation": interpolation}


def central(box: Stage) -> Stage:
    """The central box of the size of another one, resized in the same way."""
    return center_box(size=box.setting("size"), **_kernel(box.setting("interpolation")))


def _side(size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UserError(f"augment: size is {size!r}; it is a number of pixels, as in augment(inception, 224)")
    return size


@batch_stage(random=True)
def crop_flip(batches: Iterator[Batch], pad: int = 4, mode: str = "zeros", flip: bool = True) -> Iterator[Batch]:
    """Pad, crop the original size at random, flip: the same for an image and its versions.

    On the processor by a loop (:mod:`kdstream.stream.kernels`), on a GPU by one kernel
    (:mod:`kdstream.stream.cuda_kernels`), else by a gather, whatever the type of the pixels.
    """
    for batch in batches:
        view = partial(_cropped, keys(batch), pad, mode == "reflect", flip)
        versions = batch.variants
        if versions is not None:  # all of them at once, as if they were further channels
            versions = view(versions.flatten(1, 2)).unflatten(1, versions.shape[1:3])
        yield replace(batch, image=view(batch.image), variants=versions)


def _cropped(key: Tensor, pad: int, reflect: bool, flip: bool, images: Tensor) -> Tensor:
    """Images [N,M,H,W] cropped and mirrored as their keys, int64 [N], say; M may be any number of planes."""
    if images.is_cuda and cuda.available():
        from kdstream.stream import cuda_kernels  # imports Triton

        return cuda_kernels.crop_flip(images, key, "crop_flip", pad, reflect, flip)
    cut = kernels.crop_flip(images, key, "crop_flip", pad, reflect, flip)
    return gathered(images, key, pad, reflect, flip) if cut is None else cut


def gathered(images: Tensor, key: Tensor, pad: int, reflect: bool, flip: bool) -> Tensor:
    """What :func:`kdstream.stream.kernels.crop_flip` gives, for any type and device, by one gather."""
    height, width = images.shape[-2:]
    draws = uniform(key, 3, "crop_flip")
    offset = (draws[:, :2] * (2 * pad + 1)).long() - pad
    rows = offset[:, 0, None] + torch.arange(height, device=draws.device)
    columns = offset[:, 1, None] + torch.arange(width, device=draws.device)
    if flip:
        columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None]
    rows, columns = _fold(rows, height), _fold(columns, width)
    sample = torch.arange(len(rows), device=rows.device)[:, None, None, None]
    plane = torch.arange(images.shape[1], device=rows.device)[None, :, None, None]
    cut = images[sample, plane, rows[:, None, :, None], columns[:, None, None, :]]
    return cut if reflect else cut * inside


def _fold(position: Tensor, length: int) -> Tensor:
    """Positions outside of 0..length-1 reflected back inside, the border pixel not repeated."""
    if length == 1:
        return torch.zeros_like(position)
    position = position.remainder(2 * (length - 1))
    return torch.where(position < length, position, 2 * (length - 1) - position)


@batch_stage(random=True)
def random_flip(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Mirror left and right with probability 1/2."""
    for batch in batches:
        flipped = (uniform(keys(batch), 1, "random_flip") < 0.5)[:, :, None, None]
        yield batch.map_views(partial(_mirrored, flipped))


def _mirrored(where: Tensor, images: Tensor) -> Tensor:
    return torch.where(where, images.flip(-1), images)


@batch_stage(random=True)
def color_jitter(batches: Iterator[Batch], strengths: Sequence[float]) -> Iterator[Batch]:
    """Brightness, contrast, saturation and hue, each by a factor drawn per sample.

    The distributions are those of torchvision's ColorJitter; the order is the one named here (torchvision draws it).
    Images become float in [0,1].
    """
    from kornia import enhance  # slow to import, and only this stage needs it

    brightness, contrast, saturation, hue = strengths
    for batch in batches:
        draws = uniform(keys(batch), 4, "color_jitter") * 2 - 1
        b = (1 + draws[:, 0] * brightness).clamp(min=0)
        c = (1 + draws[:, 1] * contrast).clamp(min=0)
        s = (1 + draws[:, 2] * saturation).clamp(min=0)
        h = draws[:, 3] * hue * 2 * math.pi

        def view(images: Tensor, b: Tensor = b, c: Tensor = c, s: Tensor = s, h: Tensor = h) -> Tensor:
            images = to_unit(images)
            if brightness:
                images = enhance.adjust_brightness_accumulative(images, b)
            if contrast:
                images = enhance.adjust_contrast_with_mean_subtraction(images, c)
            if saturation:
                images = enhance.adjust_saturation_with_gray_subtraction(images, s)
            return enhance.adjust_hue(images, h).clamp(0, 1) if hue else images

        yield batch.map_views(view)


def draw_box(
    height: int, width: int, draws: Sequence[float], scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """A box in an image, distributed as torchvision's RandomResizedCrop draws it.

    Ten tries of an area (uniform in ``scale`` times the image's) and an aspect ratio (log-uniform in ``ratio``); the
    first that fits is placed uniformly. If none fits, the largest central box whose ratio is in range.

    Args:
        height, width: of the image.
        draws: 40 uniform numbers in [0,1), four a try.
        scale, ratio: ranges.

    Returns:
        top, left, height, width.
    """
    for attempt in range(10):
        u_area, u_ratio, u_top, u_left = draws[4 * attempt : 4 * attempt + 4]
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u_area)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u_ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    w, h = max(w, 1), max(h, 1)
    return (height - h) // 2, (width - w) // 2, h, w


def _cut(
    sample: Sample, top: int, left: int, height: int, width: int, size: Sequence[int], interpolation: str
) -> Sample:
    """Cut one box out of the image and of its versions; antialiased resize of uint8, on the host."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    kernel = InterpolationMode(interpolation)
    for name in ("image", "variants"):
        if name in sample:
            sample[name] = tv.resized_crop(sample[name], top, left, height, width, list(size), kernel, antialias=True)
    return sample


@stage(random=True, role="box")
def random_box(
    samples: Iterator[Sample],
    size: int,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
    exact: bool = False,
) -> Iterator[Sample]:
    """A random box of each image, resized to size x size; boxes are drawn from the image's true size.

    Straight after ``decode``, in a stream for training, images are not decoded whole: see
    :mod:`kdstream.stream.boxes`. ``exact=true`` has them decoded whole and cut by torchvision.
    """
    for sample in samples:
        draws = uniform(torch.tensor([sample["rng_key"]]), 40, "random_box")[0].tolist()
        height, width = sample["image"].shape[-2:]
        box = draw_box(height, width, draws, scale, ratio)
        yield _cut(sample, *box, (size, size), interpolation)


@stage(random=True)
def draw_boxes(samples: Iterator[Sample], scale: Sequence[float], ratio: Sequence[float]) -> Iterator[Sample]:
    """Draw the box of :func:`random_box`, and leave the cutting to :func:`cut_boxes`, on the accelerator."""
    whole = list(samples)
    draws = uniform(torch.tensor([sample["rng_key"] for sample in whole], dtype=torch.int64), 40, "random_box").tolist()
    for sample, numbers in zip(whole, draws, strict=True):
        if "variants" in sample:
            raise UserError(
                "augment(inception, on=device) cuts images without compressed versions: put coded after it, or cut on "
                "the host"
            )
        height, width = sample["image"].shape[-2:] if "image" in sample else sample["__size__"]
        sample["box"] = draw_box(height, width, numbers, scale, ratio)
        yield sample


@batch_stage(random=True, role="box")
def cut_boxes(batches: Iterator[Batch], size: int, interpolation: str = "bilinear") -> Iterator[Batch]:
    """Cut the boxes that were drawn out of whole images of any sizes, each resized to size x size, antialiased.

    Each image by itself, as its box is: no padding, and a view does not depend on what else is in the batch. kornia's
    ``crop_and_resize`` takes images of one size and samples four pixels for each of the view's, whatever the scale;
    here pixels are weighted as Pillow weights them. On the CPU the pixels are those of the host's exact way; on CUDA,
    within a grey level, one kernel cuts all of a batch (:mod:`kdstream.stream.cuda_boxes`). Images that come as files
    (``decode(on=device)``) are decoded first.
    """
    for batch in batches:
        if batch.pixels is None or batch.places is None:
            raise UserError("cut_boxes: there are no whole images to cut: use it as augment(inception, on=device)")
        image = _cut_all(batch.pixels, batch.places, batch.files, size, interpolation)
        yield replace(batch, image=image, pixels=None, places=None, files=None)


def _cut_all(
    pixels: Tensor, places: list[tuple[int, ...]], files: Files | None, size: int, interpolation: str
) -> Tensor:
    """The views, uint8 [N,3,size,size], of a batch's ``pixels``, ``places`` and ``files``."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    device = pixels.device
    decoded: dict[int, Tensor] = {}
    if files is not None:
        numbers = [number for number, *_ in files.where]
        sizes = [(places[number][1], places[number][2]) for number in numbers]
        decoded = dict(zip(numbers, device_files.decoded(files, sizes, device), strict=True))
    if device.type == "cuda" and cuda.available():
        # Slow to import, and only here needed.
        from kdstream.stream import cuda_boxes

        return cuda_boxes.cut(pixels, places, decoded, size, interpolation)
    views = torch.empty(len(places), 3, size, size, dtype=torch.uint8, device=device)
    kernel = InterpolationMode(interpolation)
    for number, (view, (start, height, width, *box)) in enumerate(zip(views, places, strict=True)):
        image = decoded.get(number)
        if image is None:
            image = pixels[start : start + 3 * height * width].view(3, height, width)
        view.copy_(tv.resized_crop(image, *box, [size, size], kernel, antialias=True))
    return views


@stage(role="box")
def center_box(
    samples: Iterator[Sample], size: int, crop: float = 0.875, interpolation: str = "bilinear"
) -> Iterator[Sample]:
    """The central square of side ``crop`` times the shorter side, resized to size x size."""
    for sample in samples:
        height, width = sample["image"].shape[-2:]
        side = max(1, round(min(height, width) * crop))
        yield _cut(sample, (height - side) // 2, (width - side) // 2, side, side, (size, size), interpolation)
