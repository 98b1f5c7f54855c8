"""The JPEG round trip: what an image looks like after it was saved as JPEG at some quality, without any JPEG bytes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from kdstream.errors import UserError
from kdstream.jpeg import reference
from kdstream.jpeg.reference import Subsampling
from kdstream.jpeg.tables import quant_table

__all__ = ["quant_table", "roundtrip"]


def roundtrip(
    images: Tensor,
    qualities: Sequence[int] | Tensor,
    subsampling: Subsampling = "4:4:4",
    backend: Literal["auto", "reference", "cpu", "cuda"] = "auto",
) -> Tensor:
    """Images after JPEG compression and decompression, for several qualities at once or for one of each image's own.

    All backends give the same pixels: those of Pillow with libjpeg-turbo (see
    :func:`kdstream.jpeg.reference.roundtrip`). None needs more memory than images, result and a fixed workspace.

    Args:
        images: uint8 [N,C,H,W], C = 1 (grey) or 3 (RGB), H, W >= 1, any strides, any device.
        qualities: Q integers 0..100 for all images, or an integer tensor [N,Q]: Q qualities for each image ([N,1]
            makes exactly one version of each).
        subsampling: of the chroma planes of RGB images: "4:4:4" = none, "4:2:0" = halved both ways. Without effect
            on grey images.
        backend: "reference" is plain torch on any device; "cpu" vector code made by numba (:mod:`kdstream.jpeg.cpu`);
            "cuda" Triton kernels (:mod:`kdstream.jpeg.cuda`). "auto" takes the fastest that works where the images
            are.

    Returns:
        uint8 [N,Q,C,H,W] on the device of ``images``, contiguous.

    Raises:
        UserError: images of another type or shape, no qualities, qualities of another type, shape or range, an
            unknown subsampling or backend, a backend that is not installed or not made for the images' device.
    """
    return _chosen(images, backend)(images, qualities, subsampling)


def _chosen(images: Tensor, backend: str) -> Callable[..., Tensor]:
    """The function of a backend. Backends are imported when they are first used."""
    if backend == "reference":
        return reference.roundtrip
    if backend == "auto":
        # Whoever hands over something else than a tensor is told so by the reference.
        device = images.device.type if isinstance(images, Tensor) else ""
        made_for = importlib.import_module(f"kdstream.jpeg.{device}") if device in ("cpu", "cuda") else None
        return made_for.roundtrip if made_for is not None and made_for.available() else reference.roundtrip
    if backend not in ("cpu", "cuda"):
        raise UserError(f"unknown JPEG backend {backend!r}: use 'auto', 'reference', 'cpu' or 'cuda'")
    module = importlib.import_module(f"kdstream.jpeg.{backend}")
    if not module.available():
        raise UserError(f"the JPEG backend {backend!r} cannot be loaded here: {_NEEDS[backend]}, or use 'auto'")
    return module.roundtrip


_NEEDS = {"cpu": "install numba", "cuda": "install triton"}
