"""Boxes cut while an image is decoded: from a sample's bytes to its view, without the image in between."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from kdstream.batch import Sample
from kdstream.data.image_file import orientation
from kdstream.errors import UserError
from kdstream.jpeg import cpu
from kdstream.jpeg.header import Header, read_header
from kdstream.jpeg.part import decode_part
from kdstream.rng import uniform
from kdstream.stream.augment import cut_boxes, draw_box, draw_boxes, random_box, random_flip
from kdstream.stream.decode import decode, decodes_on_device, image_of, read_image, telling_which
from kdstream.stream.stage import Chain

WAY = 1
"""The name of these pixels. A stream's state holds it, so that a training goes on with the pixels it began with."""

_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""EXIF orientation -> how the image as it is stored becomes upright: rows reversed (2nd), columns reversed (3rd), then
both exchanged (1st)."""


@dataclass(frozen=True)
class BoxReader:
    """What ``decode | random_box`` and, perhaps, ``random_flip`` do, in one step.

    The boxes are those of :func:`~kdstream.stream.augment.random_box`. Of an ordinary JPEG (sequential, grey or YCbCr)
    only the blocks of the box are transformed, and its planes are resized before they become colours
    (:mod:`kdstream.jpeg.part`); any other file is decoded whole. Both are resized in whole numbers, once, antialiased.
    Pixels differ from those of the two stages by less than one grey level on average.

    Attributes:
        upright, max_pixels: of ``decode``.
        size, scale, ratio, interpolation: of ``random_box``.
        flip: mirror half of the views, as ``random_flip`` does.
    """

    upright: bool
    max_pixels: int
    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: str
    flip: bool

    def views(self, samples: Sequence[Sample], out: Tensor) -> None:
        """The view of every sample, and its ``label``.

        Args:
            samples: as they stand in the shards, with ``rng_key``.
            out: uint8 [N,3,size,size], contiguous, in main memory; filled.

        Raises:
            UserError: what :func:`~kdstream.stream.decode.decode` raises.
        """
        keys = torch.tensor([sample["rng_key"] for sample in samples])
        draws = uniform(keys, 40, random_box.name).tolist()
        mirrored = (uniform(keys, 1, random_flip.name)[:, 0] < 0.5).tolist() if self.flip else [False] * len(samples)
        for sample, view, numbers, mirror in zip(samples, out.numpy(), draws, mirrored, strict=True):
            data, what = image_of(sample)
            with telling_which(sample):
                self._view(data, what, numbers, mirror, view)
            sample["label"] = int(sample["cls"])

    def _view(self, data: bytes, what: str, draws: Sequence[float], mirror: bool, view: np.ndarray) -> None:
        header = read_header(data)
        if (
            header is None
            or header.height * header.width > self.max_pixels
            or not self._cut(data, header, draws, mirror, view)
        ):
            image = read_image(data, what, self.upright, self.max_pixels).numpy()
            height, width = image.shape[1:]
            box = draw_box(height, width, draws, self.scale, self.ratio)
            resized(list(image), box, [(0, 0, height, width, 1, 1)] * 3, self.interpolation, False, mirror, view)

    def _cut(self, data: bytes, header: Header, draws: Sequence[float], mirror: bool, view: np.ndarray) -> bool:
        """The view of a JPEG that can be read in part; False where that fails."""
        turn = orientation(header.exif) if header.exif and self.upright else 1
        exchanged, rows_back, columns_back = _TURNS[turn]
        whole = (header.width, header.height) if exchanged else (header.height, header.width)
        top, left, height, width = draw_box(*whole, draws, self.scale, self.ratio)
        if exchanged:
            top, left, height, width = left, top, width, height
        top = header.height - top - height if rows_back else top
        left = header.width - left - width if columns_back else left
        planes = decode_part(data, header, top, left, height, width)
        if planes is None:
            return False
        parts = [(p.top, p.left, p.height, p.width, p.down, p.across) for p in planes]
        target = view if turn == 1 else np.empty_like(view)
        box = (top, left, height, width)
        resized([p.pixels for p in planes], box, parts, self.interpolation, True, mirror and turn == 1, target)
        if turn != 1:
            target = target[:, :: -1 if rows_back else 1, :: -1 if columns_back else 1]
            target = target.transpose(0, 2, 1) if exchanged else target
            view[:] = target[:, :, ::-1] if mirror else target
        return True


def resized(
    planes: Sequence[np.ndarray],
    box: tuple[int, int, int, int],
    parts: Sequence[tuple[int, int, int, int, int, int]],
    interpolation: str,
    is_ycc: bool,
    mirror: bool,
    view: np.ndarray,
) -> None:
    """Antialiased resizing of a box, as Pillow weights pixels; the arguments are those of
    :func:`kdstream.stream.resize_kernel.cut`."""
    kernel = _kernel()
    kind = {"bilinear": kernel.BILINEAR, "bicubic": kernel.BICUBIC}[interpolation]
    first, second, third = planes if len(planes) == 3 else (planes[0],) * 3
    kernel.cut(first, second, third, np.array(box), np.array(parts), kind, is_ycc, mirror, view)


def _kernel() -> ModuleType:
    """The compiled kernel; importing it (and numba) takes long, so it waits for the first image."""
    return importlib.import_module("kdstream.stream.resize_kernel")


def cut_while_decoding(host: Chain, device: Chain) -> tuple[BoxReader | None, Chain, Chain]:
    """Take ``decode | random_box``, and a ``random_flip`` that follows at once, out of a chain's two parts.

    Returns:
        What does it in one step, and what is left of both parts; None, and the parts as they are, where the chain does
        not begin so, where ``random_box(exact=true)`` asks for the two stages, or where no kernel can be compiled.
    """
    first = host.stages[:2]
    if [stage.function for stage in first] != [decode.function, random_box.function] or first[1].setting("exact"):
        return None, host, device
    if not cpu.available():
        return None, host, device
    rest, after = Chain(host.stages[2:]), device
    flip = not rest.stages and bool(device.stages) and device.stages[0].function is random_flip.function
    if flip:
        after = Chain(device.stages[1:])
    decoding = {name: first[0].setting(name) for name in ("upright", "max_pixels")}
    box = {name: first[1].setting(name) for name in ("size", "scale", "ratio", "interpolation")}
    return BoxReader(**decoding, **box, flip=flip), rest, after


def refuse_without_pixels(chain: Chain, skips: bool) -> None:
    """What ``decode(on=device)`` does not go with: stages that need pixels on the host, and skipping.

    Args:
        chain: a stream's.
        skips: samples that cannot be decoded shall be skipped.

    Raises:
        UserError: the chain has it, and that.
    """
    place = next((i for i, step in enumerate(chain.stages) if decodes_on_device(step)), None)
    if place is None:
        return
    after = chain.stages[place + 1 : place + 3]
    if [step.function for step in after] != [draw_boxes.function, cut_boxes.function]:
        raise UserError(
            "decode(on=device) gives the host no pixels: augment(inception, SIZE, on=device) must follow at once, "
            f"and here follows {after[0].name if after else 'nothing'}; use decode(on=host)"
        )
    if skips:
        raise UserError(
            "decode(on=device) goes with on_error=stop alone: when the device meets an image that it cannot decode, "
            "its batch is made already; use decode(on=host)"
        )
