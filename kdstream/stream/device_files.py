"""Image files decoded where a batch is: on a GPU all at once, by nvJPEG."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from kdstream.batch import Files
from kdstream.data.faults import Undecodable
from kdstream.errors import UserError
from kdstream.stream.decode import read_image


def decoded(files: Files, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
    """The images of JPEG files, not turned.

    Where the device's decoder refuses a file, the host decodes it.

    Args:
        files: N of them.
        sizes: the (height, width) of each, as its header has it.
        device: where the images shall be.

    Returns:
        uint8 [3,H,W], RGB, of each.

    Raises:
        kdstream.data.faults.Undecodable: a file is damaged, as ``decode`` says it.
        UserError: torchvision decodes no JPEG here.
    """
    coded = [files.data[begin : begin + length] for _, begin, length in files.where]
    with contextlib.suppress(_Refused):
        return _decoded(coded, sizes, device)
    found: list[Tensor] = []
    refused: list[_Refused] = []
    for data, size, name in zip(coded, sizes, files.names, strict=True):
        try:
            found += _decoded([data], [size], device)
        except _Refused as why:
            refused.append(why)
            found.append(_on_host(data, size, name).to(device))
    if len(found) == len(refused) > 1:  # it is not the files
        raise UserError(f"torchvision decodes no JPEG on {device} ({refused[0]}): use decode(on=host)")
    return found


class _Refused(Exception):
    """The device's decoder has not decoded all of some files; says why."""


def _decoded(coded: list[Tensor], sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
    """The images of files, each uint8 [n] in main memory."""
    gpu = device.type == "cuda"
    try:
        from torchvision.io import ImageReadMode, decode_jpeg

        # torchvision decodes on a stream of its own, which waits for nobody. So its images lie in memory that no other
        # work is done in, and which is used anew only when those who look at them have ended.
        with warnings.catch_warnings(), torch.cuda.stream(_stream(device)) if gpu else contextlib.nullcontext():
            warnings.simplefilter("ignore")  # of a newer torchvision: its decoders will move to torchcodec
            images = decode_jpeg(coded, ImageReadMode.RGB, device=device if gpu else "cpu")
    except (RuntimeError, ImportError) as error:
        raise _Refused(" ".join(str(error).split())[:300]) from error
    if [tuple(image.shape) for image in images] != [(3, *size) for size in sizes]:
        raise _Refused("images of another size than their files say")
    if not gpu:
        return [image.to(device) for image in images]
    here = torch.cuda.current_stream(device)
    here.wait_stream(_stream(device))
    for image in images:
        image.record_stream(here)
    return list(images)


def _on_host(data: Tensor, size: tuple[int, int], name: str) -> Tensor:
    image = read_image(data.numpy().tobytes(), name, upright=False, max_pixels=size[0] * size[1])
    if tuple(image.shape[1:]) != size:
        raise Undecodable(f"cannot decode {name}: it has another size than its header says: the file is damaged")
    return image


@functools.lru_cache(maxsize=16)
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
