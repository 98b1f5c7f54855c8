"""A part of a JPEG image: its planes around a box, without decoding more than is needed for them.

No kept library with wheels gives a region: Pillow, torchvision's decode_jpeg, simplejpeg and kornia_rs decode whole
images (Pillow's draft and simplejpeg at 1/2, 1/4, 1/8 of the size, which boxes of usual photographs seldom allow), and
most of what they do is Huffman decoding, whatever the size. PyTurboJPEG needs a libturbojpeg 3 that no wheel brings,
nvimgcodec a CUDA driver. CPU time for one of 300 photographs of ImageNet (0.2 megapixels, 107 KB, three quarters of
them 4:4:4), in turn on a busy machine: Pillow 3.17 ms, torchvision 2.50, simplejpeg 2.20 (1.43 at 1/8 of the size),
boxes of random resized crops here 1.27; the inverse DCT is less than a tenth, and a smaller scale saves little.
"""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from kdstream.jpeg.header import Header


@dataclass(frozen=True)
class Plane:
    """A component's samples.

    Attributes:
        pixels: uint8 [rows, columns], contiguous: the last columns may be no part of the image. They lie in the
            thread's workspace and are valid until its next call.
        top, left: where they begin in the component's whole plane.
        height, width: of the whole plane, in samples.
        down, across: image pixels for each sample, 1 or 2.
    """

    pixels: np.ndarray
    top: int
    left: int
    height: int
    width: int
    down: int
    across: int


class _Workspace(threading.local):
    """Memory that a thread keeps from image to image."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)

    def room(self, size: int) -> np.ndarray:
        if len(self.memory) < size:
            self.memory = np.empty(size + size // 4, np.uint8)
        return self.memory


_workspace = _Workspace()


def decode_part(data: bytes, header: Header, top: int, left: int, height: int, width: int) -> list[Plane] | None:
    """The planes of an image around a box: Y, Cb and Cr, or grey.

    The samples are those of libjpeg-turbo's accurate inverse DCT, bit for bit. All that stands in the file before the
    box's last row is Huffman-decoded, or from the last restart marker before its first row; the inverse DCT is done
    for the units that the box, and one more sample of halved chroma on each side, lie in.

    Args:
        data: the file.
        header: its header, of :func:`kdstream.jpeg.header.read_header`.
        top, left, height, width: the box, inside of the image.

    Returns:
        None where the file is damaged before the box's end, or does not end with its mark.
    """
    kernel = _kernel()
    rows, columns = header.unit
    margin = 2 if len(header.sampling) == 3 else 0
    down, across = -(-header.height // rows), -(-header.width // columns)
    first, last = max(0, top - margin) // rows, min(down, -(-(top + height + margin) // rows))
    start, stop = max(0, left - margin) // columns, min(across, -(-(left + width + margin) // columns))
    wide, high = stop - start, last - first
    strides = [kernel.row_bytes(wide, h) for h, _ in header.sampling]
    sizes = [stride * high * 8 * v for stride, (_, v) in zip(strides, header.sampling, strict=True)]
    memory = _workspace.room(sum(sizes) + kernel.workspace(wide, header.sampling, len(data)) + 64)
    address = memory.__array_interface__["data"][0]
    skip = -address % 64
    begins = [skip + sum(sizes[:i]) for i in range(len(sizes) + 1)]
    fields = [header.scan, header.restart, len(header.sampling), across, down]
    for (h, v), steps, codes in zip(header.sampling, header.quantisation, header.codes, strict=True):
        fields += [h, v, steps, *codes]
    found = kernel.decode(
        np.frombuffer(data, np.uint8).__array_interface__["data"][0],
        len(data),
        np.array(fields),
        header.huffman,
        header.steps,
        np.array([first, last, start, stop]),
        np.array([[address + begin, stride] for begin, stride in zip(begins, strides, strict=False)]),
        address + begins[-1],
    )
    if found != kernel.GOOD:
        return None
    planes = []
    for (h, v), stride, size, begin in zip(header.sampling, strides, sizes, begins, strict=False):
        by_row, by_column = rows // (8 * v), columns // (8 * h)
        part = memory[begin : begin + size].reshape(-1, stride)
        whole = -(-header.height // by_row), -(-header.width // by_column)
        planes.append(Plane(part, first * v * 8, start * h * 8, *whole, by_row, by_column))
    return planes


def _kernel() -> ModuleType:
    """The compiled kernel; importing it (and numba) takes long, so it waits for the first call."""
    return importlib.import_module("kdstream.jpeg.part_kernel")
