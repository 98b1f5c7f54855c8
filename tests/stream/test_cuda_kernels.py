"""crop_flip by Triton gives what the gather gives: on a GPU where there is one, else under the interpreter."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from kdstream.stream.augment import gathered

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
KEYS = torch.tensor([0, -1, 1 << 62, -(1 << 63), 12345, 7, 8, 9])
IMAGES = torch.randint(1, 256, (len(KEYS), 6, 11, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def by_kernel(images: Tensor, key: Tensor, pad: int, reflect: bool, flip: bool) -> Tensor:
    from kdstream.stream import cuda_kernels

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return cuda_kernels.crop_flip(images.to(device), key.to(device), "crop_flip", pad, reflect, flip).cpu()


@pytest.fixture
def kernel(kernels):
    """The kernel, for images and keys in main memory."""
    return lambda *call: kernels.submit(by_kernel, *call).result()


@pytest.mark.parametrize(
    ("images", "pad", "reflect", "flip"),
    [
        (IMAGES, 4, False, True),
        (IMAGES, 4, True, True),
        (IMAGES, 1, False, False),
        (IMAGES, 0, False, True),
        (IMAGES[:, :3, :, :1], 30, True, True),  # far over the border, and nothing to reflect into
        (IMAGES[:, :1].float(), 2, True, True),
        (IMAGES.permute(0, 1, 3, 2), 3, False, True),
        (IMAGES[:0], 4, False, True),
    ],
)
def test_equals_the_gather(kernel, images, pad, reflect, flip):
    found = kernel(images, KEYS[: len(images)], pad, reflect, flip)
    expected = gathered(images, KEYS[: len(images)], pad, reflect, flip)
    assert found.dtype == images.dtype
    assert found.is_contiguous()
    assert torch.equal(found, expected)


def test_more_pixels_than_one_program_has(kernel):
    images = IMAGES[:2].repeat(1, 3, 2, 1)
    assert torch.equal(kernel(images, KEYS[:2], 4, True, True), gathered(images, KEYS[:2], 4, True, True))


def compiled_for_hopper() -> int:
    """Bytes of shared memory of the kernel, compiled for compute capability 9.0, which takes no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kdstream.stream.cuda_kernels import crop_kernel

    constants = {"SALT": 0xFFFFFFFF, "PAD": 4, "REFLECT": False, "FLIP": True, "TILE": 1024}
    types = {"images": "*u8", "keys": "*i64", "result": "*u8"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in crop_kernel.arg_names}
    places = {(crop_kernel.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(ASTSource(crop_kernel, signature, places), target=GPUTarget("cuda", 90, 32))
    return compiled.metadata.shared if "ptx" in compiled.asm else -1


def test_compiles_for_a_gpu(compiling):
    assert compiling.submit(compiled_for_hopper).result() == 0
