"""decode: image bytes to pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from kdstream.batch import Sample
from kdstream.data.faults import Undecodable
from kdstream.data.image_file import MAX_PIXELS, ImageRefused, open_image, orientation, to_rgb
from kdstream.data.index import IMAGE_EXTENSIONS
from kdstream.errors import UserError
from kdstream.jpeg.header import read_header
from kdstream.stream.stage import Stage, stage


def read_image(data: bytes, what: str, upright: bool = True, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Decode one image file.

    Args:
        data: the file's bytes, of a format that :func:`~kdstream.data.image_file.open_image` reads.
        what: names the image in messages.
        upright: turn it as its EXIF orientation says.
        max_pixels: the most that width x height may be.

    Returns:
        uint8 [3,H,W], RGB; see :func:`~kdstream.data.image_file.to_rgb` for grey, deep and transparent images.

    Raises:
        Undecodable: the bytes are no whole image, or one that is not read.
        UserError: there is not enough memory.
    """
    try:
        with open_image(data, max_pixels) as image:
            pixels = np.array(to_rgb(image, upright))
    except ImageRefused as refused:
        more = "; decode(max_pixels=...) allows more" if "allowed" in str(refused) else ""
        raise Undecodable(f"cannot decode {what}: it is {refused}{more}", f"it is {refused}") from refused
    except MemoryError as error:
        raise UserError(f"cannot decode {what}: not enough memory; fewer workers need less") from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Undecodable(
            f"cannot decode {what} ({reason}): the shard is damaged or was made from a broken file; "
            "check the set with `kdstream shards --verify FOLDER` and make it again with --on-error skip, or train "
            "without such images by data.on_error=skip",
            reason,
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@stage
def decode(
    samples: Iterator[Sample], upright: bool = True, max_pixels: int = MAX_PIXELS, on: str = "host"
) -> Iterator[Sample]:
    """Add ``image`` (uint8 [3,H,W], RGB) and ``label`` (int, from ``cls``) to every sample.

    Args:
        upright: turn images as their EXIF orientation says; TIFF is turned always.
        max_pixels: greater images are refused.
        on: "host", or "device": there JPEG files are decoded (on NVIDIA's GPUs by nvJPEG, a batch at a time), with
            slightly other pixels; what it cannot decode (PNG, progressive JPEG, CMYK, images to be turned, ...) the
            host does. ``augment(inception, SIZE, on=device)`` must follow at once.
    """
    for sample in samples:
        data, what = image_of(sample)
        size = _size_for_device(data, upright, max_pixels) if on == "device" else None
        if size is None:
            with telling_which(sample):
                sample["image"] = read_image(data, what, upright, max_pixels)
        else:
            sample["__file__"], sample["__size__"] = torch.frombuffer(bytearray(data), dtype=torch.uint8), size
        sample["label"] = int(sample["cls"])
        yield sample


def _size_for_device(data: bytes, upright: bool, max_pixels: int) -> tuple[int, int] | None:
    """(height, width) of a JPEG file that the device decodes; None where the host does, or says what is wrong."""
    header = read_header(data)
    if header is None or header.height * header.width > max_pixels:
        return None
    if not data.endswith(_END) or (upright and header.exif and orientation(header.exif) != 1):
        return None
    return header.height, header.width


_END = b"\xff\xd9"
"""The last bytes of a whole JPEG file. A decoder on a device may take one that was cut off for whole."""


def on_host(step: Stage) -> Stage:
    """The stage itself, or, of ``decode(on=device)``, that which decodes on the host."""
    if not decodes_on_device(step):
        return step
    settings = {name: value for name, value in step.settings.items() if name != "on"}
    return replace(step, args=step.args[:2], settings=settings)


def decodes_on_device(step: Stage) -> bool:
    """Whether it is ``decode(on=device)``.

    Raises:
        UserError: it is ``decode`` on something else.
    """
    if step.function is not decode.function:
        return False
    on = step.setting("on")
    if on not in ("host", "device"):
        raise UserError(f"decode: on is {on!r}; it is host or device")
    return bool(on == "device")


@contextlib.contextmanager
def telling_which(sample: Sample) -> Iterator[None]:
    """What cannot be decoded within the block is this sample's image."""
    try:
        yield
    except Undecodable as fault:
        fault.index, fault.key = sample.get("index"), str(sample.get("__key__"))
        fault.shard = str(sample.get("__url__"))
        raise


def image_of(sample: Sample) -> tuple[bytes, str]:
    """A sample's image file, and what to call it in messages.

    Raises:
        UserError: it has none.
    """
    extension = next((name for name in sample if name.lower() in IMAGE_EXTENSIONS), None)
    what = f"sample {sample.get('__key__')!r} of {sample.get('__url__')}"
    if extension is None:
        raise UserError(f"{what} holds no image: its members are {', '.join(n for n in sample if n[:2] != '__')}")
    return sample[extension], f"{what} ({extension})"
