"""The Triton kernel that cuts boxes gives torchvision's pixels: on a GPU where there is one, else interpreted.

The interpreter has to be chosen before Triton is imported, and compiling must not be interpreted: each has a process.
"""

from __future__ import annotations

import importlib.util
import re

import numpy as np
import pytest
import torch
from every import EVERY
from photographs import photograph

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
BOXES = [  # height, width, box: smaller, larger and as large as a view; one row; one pixel
    (30, 45, (3, 2, 9, 11)),
    (60, 71, (2, 9, 45, 50)),
    (40, 50, (5, 6, 16, 16)),
    (5, 33, (4, 0, 1, 33)),
    (9, 9, (8, 8, 1, 1)),
]


def cut_here(images: list[np.ndarray], apart: set[int], size: int, interpolation: str, tile: int | None) -> np.ndarray:
    """The views of BOXES; those images that are not ``apart`` lie together."""
    from kdstream.stream import cuda_boxes

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pixels, places = torch.zeros(0, dtype=torch.uint8), []
    for number, (image, (height, width, box)) in enumerate(zip(images, BOXES, strict=False)):
        places.append((-1 if number in apart else len(pixels), height, width, *box))
        if number not in apart:
            pixels = torch.cat([pixels, torch.from_numpy(image).flatten()])
    others = {number: torch.from_numpy(images[number]).to(device) for number in apart}
    with pytest.MonkeyPatch.context() as patch:
        if tile is not None:  # one program a view: interpreted, it takes long whatever it does
            patch.setattr(cuda_boxes, "_ROWS", tile)
            patch.setattr(cuda_boxes, "_COLUMNS", tile)
        return cuda_boxes.cut(pixels.to(device), places, others, size, interpolation).cpu().numpy()


def test_views_are_torchvision_s(kernels):
    # Slow to import, and the child processes do not need them.
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    images = [np.array(photograph(h, w, n)).transpose(2, 0, 1) for n, (h, w, _) in enumerate(BOXES)]
    for interpolation, size, tile, count, apart in (
        ("bilinear", 16, 16, 5, {1, 4}),
        ("bicubic", 16, 16, 2, {0, 1}),
        ("bilinear", 35, None, 1, set()),
    ):
        found = kernels.submit(cut_here, images[:count], apart, size, interpolation, tile).result()
        assert found.shape == (count, 3, size, size)
        kernel = InterpolationMode(interpolation)
        for view, image, (_, _, box) in zip(found, images, BOXES, strict=False):
            expected = tv.resized_crop(torch.from_numpy(image), *box, [size, size], kernel, antialias=True)
            gap = (torch.from_numpy(view).int() - expected.int()).abs()
            assert gap.max() <= (1 if interpolation == "bilinear" else 2), (interpolation, size, box)
            # torchvision rounds twice, after rows and after columns
            assert gap.float().mean() < 0.3, (interpolation, size, box)
    assert kernels.submit(cut_here, [], set(), 16, "bilinear", None).result().shape == (0, 3, 16, 16)


def compile_for_hopper(bicubic: bool) -> str:
    """The kernel compiled for compute capability 9.0, which takes no GPU: its PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kdstream.stream import cuda_boxes

    function = cuda_boxes.boxes_kernel
    constants = {"SIZE": 224, "BICUBIC": bicubic, "ROWS": cuda_boxes._ROWS, "COLUMNS": cuda_boxes._COLUMNS}
    types = {"pixels": "*u8", "table": "*i64", "views": "*u8"}
    signature = {name: types.get(name, "constexpr") for name in function.arg_names}
    source = ASTSource(function, signature, {(function.arg_names.index(name),): v for name, v in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
    return str(compiled.asm["ptx"])


def test_compiles_for_a_gpu(compiling):
    for bicubic in (False, True) if EVERY else (True,):
        ptx = compiling.submit(compile_for_hopper, bicubic).result()
        assert re.search(r"ld\.global\S*\.(b|u)8", ptx)
        assert "local" not in ptx  # nothing is spilled
