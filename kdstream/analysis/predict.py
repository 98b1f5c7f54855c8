"""Predicting: class names and probabilities for pictures, seen as the network saw its evaluation images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kdstream.atomic import reason
from kdstream.convert.image_listing import LeftOut, find_images, hidden
from kdstream.data.faults import Undecodable
from kdstream.data.image_file import ImageRefused, to_rgb
from kdstream.errors import UserError
from kdstream.notes import About, about_of, architecture
from kdstream.stream.augment import augment, central
from kdstream.stream.decode import decode, read_image
from kdstream.stream.language import Call, parse_calls
from kdstream.stream.normalize import standardise, to_unit
from kdstream.stream.stage import Stage

WHOLE = 1.0
"""Of the shorter side, where training cut nothing away."""


@dataclass(frozen=True)
class Prediction:
    """What a network says of one picture.

    Attributes:
        source: the file; None for pixels.
        top: (class name, probability 0..1) of the most probable classes, most probable first; empty where the picture
            cannot be read.
        number: of the most probable class, in the order of the logits; None likewise.
        error: why it cannot be read; None: it can.
    """

    source: str | None
    top: tuple[tuple[str, float], ...] = ()
    number: int | None = None
    error: str | None = None

    @property
    def label(self) -> str | None:
        """Name of the most probable class."""
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        """Of that class, 0..1."""
        return self.top[0][1] if self.top else None

    def __str__(self) -> str:
        said = self.error or ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.top)
        return said if self.source is None else f"{self.source}: {said}"


@dataclass(frozen=True)
class View:
    """How a picture becomes what a network takes.

    Attributes:
        size: (H, W) in pixels; None: as the picture is.
        crop: share of the largest centred box of that shape that is kept and resized.
        interpolation: "bilinear" or "bicubic".
        mean, std: by channel, of images in [0,1].
        upright, max_pixels: see :func:`kdstream.stream.decode.decode`; empty = its defaults.
    """

    size: tuple[int, int] | None
    crop: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    decoding: tuple[tuple[str, Any], ...] = ()

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 or float in [0,1], [3,H,W] -> float32, standardised."""
        height, width = image.shape[-2:]
        if self.size is not None and not (self.crop == WHOLE and (height, width) == self.size):
            from torchvision.transforms.v2 import InterpolationMode
            from torchvision.transforms.v2 import functional as tv

            scale = self.crop * min(height / self.size[0], width / self.size[1])
            high, wide = (max(1, round(side * scale)) for side in self.size)
            place = (height - high) // 2, (width - wide) // 2, high, wide
            kernel = InterpolationMode(self.interpolation)
            image = tv.resized_crop(image, *place, list(self.size), kernel, antialias=True)
        return standardise(to_unit(image), self.mean, self.std)


def view_of(
    network: nn.Module,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> View:
    """The view in which a network's export was evaluated.

    Where training cut boxes, that is the central square of ``augment(eval, SIZE)``. Where it took images as they are,
    images of another size are cut to the largest centred box of that shape, and resized.

    Args:
        network: as :func:`kdstream.load_student` or ``load_teacher`` gives it.
        size: pixels, instead of the export's.
        mean, std: by channel, of images in [0,1], instead of the export's.

    Raises:
        UserError: no mean and std; an evaluation that had stages of somebody's own, which an export does not hold.
    """
    about = about_of(network)
    channels: list[Any] = [mean or about.get("mean"), std or about.get("std")]
    if not all(channels):
        raise UserError(
            f"{architecture(network)} does not say which mean and std its images were standardised with: give mean and "
            "std (by channel, of images in [0,1])"
        )
    box, decoding = _evaluated(about)
    trained: Any = about.get("image_size")
    wanted = size if size is not None else None if box is None else box.setting("size")
    wanted = wanted if wanted is not None else trained
    if wanted is not None and (isinstance(wanted, bool) or not np.all(np.asarray(wanted) >= 1)):
        raise UserError(f"size is {wanted!r}: it is a number of pixels, 1 or more")
    shape = None if wanted is None else (wanted, wanted) if isinstance(wanted, int) else (wanted[0], wanted[1])
    crop, interpolation = (WHOLE, "bilinear") if box is None else (box.setting("crop"), box.setting("interpolation"))
    shift, scale = (tuple(map(float, values)) for values in channels)
    return View(shape, crop, interpolation, shift, scale, decoding)


def _evaluated(about: About) -> tuple[Stage | None, tuple[tuple[str, Any], ...]]:
    """The central box of the evaluation that an export's recipe tells of, and the settings of its ``decode``.

    Only names are read: an export is data, and what it names is not run.
    """
    recipe = about.get("extra", {}).get("recipe")
    recipe = recipe if isinstance(recipe, dict) else {}
    own = recipe.get("eval_stream")
    text = own or recipe.get("stream") or "decode"
    calls = parse_calls(text) if isinstance(text, str) else []
    boxes: list[Stage] = []
    decoding: dict[str, Any] = {}
    for call in calls:
        if call.name == "augment" and call.args:
            boxes += _boxes(call, in_evaluation=own is not None)
        elif own is not None and call.name == "decode":
            made = decode(*call.args, **call.settings)
            decoding = {name: made.setting(name) for name in ("upright", "max_pixels")}
        elif own is not None and call.name != "normalize":
            raise UserError(
                f"it was evaluated behind a stage that its export does not hold ({call.name}): run your stages, and "
                "give what they make, standardised, to the network itself"
            )
    return (boxes[-1] if boxes else None), tuple(decoding.items())


def _boxes(call: Call, in_evaluation: bool) -> list[Stage]:
    kind, *rest = call.args
    stages = [stage for stage in augment(str(kind), *rest, **call.settings).stages if stage.role == "box"]
    return stages if in_evaluation and kind == "eval" else [central(stage) for stage in stages]


def predict(
    network: nn.Module,
    images: Any,
    *,
    top: int | None = 5,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 32,
    on_error: Literal["stop", "skip"] = "stop",
) -> Any:
    """Class names and probabilities.

    Files are read as ``decode`` reads them: turned as EXIF says; grey in three equal channels, transparency on white,
    CMYK as Pillow converts it.

    Args:
        network: as :func:`kdstream.load_student` or ``load_teacher`` gives it; on any device. Eval mode is set while
            it answers.
        images: a file, a picture of Pillow's, an array (uint8 [H,W,3], [H,W] or with alpha [H,W,4]) or a tensor (uint8
            or float in [0,1], [3,H,W] or [1,H,W]); or several: a folder (all images below it, by name), an array
            [N,H,W,3], a tensor [N,3,H,W], a list of any of these.
        top: so many classes of each; None = all.
        size, mean, std: instead of the export's, see :func:`view_of`.
        batch_size: images at a time.
        on_error: "stop" at a file that cannot be read, or "skip" it: its ``error`` says why.

    Returns:
        A :class:`Prediction` for one image, else a list of them in order.

    Raises:
        UserError: what is no image; a file that cannot be read; a network that does not say its mean and std.
    """
    if on_error not in ("stop", "skip"):
        raise UserError(f"on_error is {on_error!r}: it is stop or skip")
    pictures, one = as_pictures(images)
    found = []
    for prediction in predictions(network, pictures, view_of(network, size, mean, std), top, batch_size):
        if prediction.error is not None and on_error == "stop":
            raise UserError(str(prediction))
        found.append(prediction)
    return found[0] if one else found


@dataclass(frozen=True)
class Picture:
    """An image that is read when its turn comes: ``read`` takes a view and gives the pixels, [3,H,W]."""

    source: str | None
    read: Callable[[View], Tensor]


def as_pictures(images: Any) -> tuple[list[Picture], bool]:
    """What :func:`predict` takes, one by one, and whether it is a single one.

    Raises:
        UserError: what is no image; an empty folder.
    """
    if isinstance(images, str | os.PathLike):
        place = Path(images).expanduser()
        return (_below(place), False) if place.is_dir() else ([Picture(str(images), partial(_file, place))], True)
    if isinstance(images, Image.Image):
        return [Picture(None, partial(_pillow, images))], True
    if isinstance(images, np.ndarray):
        several = images.ndim == 4
        return [Picture(None, partial(_array, one)) for one in (images if several else [images])], not several
    if isinstance(images, Tensor):
        several = images.ndim == 4
        return [Picture(None, partial(_tensor, one)) for one in (images if several else [images])], not several
    try:
        parts = list(images)
    except TypeError:
        raise UserError(
            f"{type(images).__name__} is no image: give a file, a folder, an array, a tensor, or a list"
        ) from None
    return [picture for part in parts for picture in as_pictures(part)[0]], False


def _below(folder: Path) -> list[Picture]:
    """All images below a folder, by name."""
    try:
        found = sorted(one.path for one in find_images(folder, "", LeftOut()) if not hidden(Path(one.path).name))
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read: {reason(error)}") from None
    if not found:
        raise UserError(f"{folder} holds no images")
    places = [folder / path.lstrip("/") for path in found]
    return [Picture(str(place), partial(_file, place)) for place in places]


def _file(place: Path, view: View) -> Tensor:
    try:
        if place.exists() and not place.is_file():
            raise UserError("is no file")  # a pipe would wait for ever
        data = place.read_bytes()
    except OSError as error:
        raise UserError(reason(error)) from None
    except ValueError as error:  # a zero byte in the name
        raise UserError(str(error)) from None
    try:
        return read_image(data, str(place), **dict(view.decoding))
    except Undecodable as fault:
        raise UserError(fault.reason) from None


def _pillow(image: Image.Image, view: View) -> Tensor:
    try:
        pixels = np.array(to_rgb(image, dict(view.decoding).get("upright", True)))
    except ImageRefused as refused:
        raise UserError(f"it is {refused}") from None
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UserError(" ".join(str(error).split()) or type(error).__name__) from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _array(pixels: np.ndarray, view: View) -> Tensor:
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))
    if pixels.dtype != np.uint8 or not fits or 0 in pixels.shape:
        raise UserError(
            f"an array {list(pixels.shape)} of {pixels.dtype} is no image: arrays are uint8, [H,W], [H,W,3] or [H,W,4] "
            "(tensors are [3,H,W])"
        )
    return _pillow(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels), view)


def _tensor(pixels: Tensor, view: View) -> Tensor:
    pixels = pixels.detach().cpu()
    fits = pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.numel() > 0
    if not fits or not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
        raise UserError(
            f"a tensor {list(pixels.shape)} of {pixels.dtype} is no image: tensors are uint8, or float in [0,1], "
            "[3,H,W] or [1,H,W] (arrays are [H,W,3])"
        )
    if pixels.is_floating_point() and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UserError("a tensor of floats is an image in [0,1], not standardised yet: that is done here")
    return pixels.expand(3, -1, -1)


def predictions(
    network: nn.Module, pictures: Sequence[Picture], view: View, top: int | None = 5, batch_size: int = 32
) -> Iterator[Prediction]:
    """A prediction for every picture, in order; ``error`` says of those that cannot be read why.

    Raises:
        UserError: settings out of range; a network that does not take such images.
    """
    if top is not None and top < 1:
        raise UserError(f"top is {top}: it is a number of classes, 1 or more")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it is a number of images, 1 or more")
    place = next((one.device for one in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    waiting: list[tuple[Picture, Tensor | str]] = []
    for picture in pictures:
        image: Tensor | str
        try:
            image = view(picture.read(view))
        except UserError as error:
            image = str(error)
        waiting.append((picture, image))
        if len(waiting) == batch_size:
            yield from _answered(network, waiting, place, top)
            waiting = []
    yield from _answered(network, waiting, place, top)


def _answered(
    network: nn.Module, waiting: Sequence[tuple[Picture, Tensor | str]], place: torch.device, top: int | None
) -> Iterator[Prediction]:
    shares: dict[int, Tensor] = {}
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, (_, image) in enumerate(waiting):
        if isinstance(image, Tensor):
            shapes.setdefault(tuple(image.shape), []).append(i)
    for shape, members in shapes.items():
        images = torch.stack([image for _, image in waiting if isinstance(image, Tensor) and image.shape == shape])
        with _in_eval_mode(network), torch.no_grad():
            try:
                logits = network(images.to(place))
            except (RuntimeError, AssertionError, ValueError) as error:
                said = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(
                    f"{architecture(network)} does not take images of {shape[1]} x {shape[2]} pixels ({said}): give "
                    "the size that it was trained for"
                ) from error
        shares |= dict(zip(members, logits.float().softmax(1).cpu(), strict=True))
    names = about_of(network).get("classes")
    for i, (picture, image) in enumerate(waiting):
        if isinstance(image, str):
            yield Prediction(picture.source, error=f"cannot be read: {image}" if picture.source else image)
            continue
        order = shares[i].argsort(descending=True, stable=True)[:top].tolist()
        best = tuple((str(number) if names is None else names[number], float(shares[i][number])) for number in order)
        yield Prediction(picture.source, best, order[0])


@contextlib.contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
