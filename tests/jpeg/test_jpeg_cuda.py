"""The Triton kernels give the reference's pixels: on a GPU where there is one, else under Triton's interpreter.

The interpreter has to be chosen before Triton is imported, and compiling must not be interpreted: each has a process.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from every import EVERY
from torch import Tensor
from triton_process import had_triton

from kdstream.errors import UserError
from kdstream.jpeg import cuda, reference
from kdstream.jpeg.tables import quant_table

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
SIZES = [(1, 1), (3, 5), (17, 9), (16, 16), (40, 33)]
KINDS = [(1, "4:4:4"), (3, "4:4:4"), (3, "4:2:0")]
ALL = EVERY or torch.cuda.is_available()
"""Else a sample: interpreted, each case takes half a second or more."""
CASES = [(*kind, size) for kind in KINDS for size in SIZES]
if not ALL:  # all sizes of one kind, two each of the others
    CASES = [case for case in CASES if case[1] == "4:2:0" or case[2] in ((1, 1) if case[0] == 1 else (16, 16), (17, 9))]
QUALITIES = [0, 1, 10, 50, 95, 100] if ALL else [1, 50, 100]
# One program an image: interpreted, a program takes a fifth of a second whatever it does.
FEW_PROGRAMS = {"_PROGRAMS": 1, "_BLOCKS": 32}


def roundtrip_here(
    images: np.ndarray,
    qualities: np.ndarray | list[int],
    subsampling: str,
    device: str,
    constants: dict[str, int],
    memory: tuple[int, ...],
    options: dict[str, int],
) -> np.ndarray:
    """cuda.roundtrip with constants of its module set, for images whose dimensions lie in memory in an order."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in constants.items():
            patch.setattr(cuda, name, value)
        given = torch.from_numpy(images).to(device).permute(memory).contiguous()
        given = given.permute([memory.index(dim) for dim in range(4)])
        qualities = torch.from_numpy(qualities) if isinstance(qualities, np.ndarray) else qualities
        result = cuda.roundtrip(given, qualities, subsampling, **options)
        assert result.is_contiguous()
        assert result.device == given.device
        return result.cpu().numpy()


@pytest.fixture(scope="module")
def differing(interpreting):
    """How many samples of cuda.roundtrip differ from the reference's."""

    def count(images, qualities, subsampling="4:4:4", memory=(0, 1, 2, 3), constants=FEW_PROGRAMS, **options):
        asked = qualities.numpy() if isinstance(qualities, Tensor) else qualities
        call = (images.numpy(), asked, subsampling)
        if torch.cuda.is_available():
            ours = roundtrip_here(*call, "cuda", constants, memory, options)
        else:
            ours = interpreting.submit(roundtrip_here, *call, "cpu", constants, memory, options).result()
        theirs = reference.roundtrip(images, qualities, subsampling).numpy()
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        return int((ours != theirs).sum())

    return count


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@needs_triton
@pytest.mark.parametrize(("channels", "subsampling", "size"), CASES)
def test_equals_the_reference(differing, channels, subsampling, size):
    """Noise, in the left half black and white, which goes furthest out of range."""
    images = noise(1, channels, *size)
    left = images[..., : size[1] // 2]
    left.copy_(255 * (left // 128))
    assert differing(images, QUALITIES, subsampling) == 0


@needs_triton
@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 8, 12, 15, 31] if ALL else [2, 3, 5, 6, 8, 31])
def test_right_edges_of_halved_chroma(differing, width):
    """Planes of 1 and 2 columns, which are not filtered; last words of 1 to 4 samples; stores of 1, 4 and 8 bytes."""
    assert differing(noise(1, 3, 18, width), [30, 97], "4:2:0") == 0


@needs_triton
@pytest.mark.parametrize(("channels", "subsampling"), KINDS)
def test_qualities_of_single_images(differing, channels, subsampling):
    qualities = torch.tensor([[3, 60, 0], [100, 60, 85]]).T[: None if ALL else 2]
    assert differing(noise(len(qualities), channels, 9, 20), qualities, subsampling) == 0


@needs_triton
@pytest.mark.parametrize(("channels", "subsampling"), KINDS if ALL else KINDS[2:])
def test_pieces_do_not_show(differing, channels, subsampling):
    """Several tiles an image, a version a program, and the smallest workspace: one version of one image."""
    constants = {"_PROGRAMS": 1 << 20, "_BLOCKS": 4, "_WORKSPACE": 1}
    qualities = torch.tensor([[3, 100], [60, 20]])
    assert differing(noise(2, channels, 9, 20), qualities, subsampling, constants=constants) == 0


@needs_triton
def test_workspace_for_some_versions_and_for_some_images(differing):
    one = 2 * 16 * 16
    constants = FEW_PROGRAMS | {"_WORKSPACE": 2 * one}
    assert differing(noise(2 if ALL else 1, 3, 20, 32), [5, 70, 90], "4:2:0", constants=constants) == 0
    assert differing(noise(3, 3, 20, 32), torch.tensor([[5], [70], [90]]), "4:2:0", constants=constants) == 0


@needs_triton
@pytest.mark.parametrize(
    ("memory", "subsampling"),
    [((0, 2, 3, 1), "4:2:0"), ((1, 3, 2, 0), "4:4:4")]
    + ([((0, 2, 3, 1), "4:4:4"), ((1, 3, 2, 0), "4:2:0")] if ALL else []),
)
def test_strided_images(differing, memory, subsampling):
    assert differing(noise(2, 3, 11, 16), [5, 80], subsampling, memory=memory) == 0


@needs_triton
@pytest.mark.parametrize(("blocks", "warps"), [(4, 1), (8, 1), (64, 8)])
def test_shapes_of_programs(differing, blocks, warps):
    assert differing(noise(1, 3, 24, 24), [40], blocks=blocks, warps=warps) == 0


@needs_triton
def test_no_images(differing):
    assert differing(noise(0, 3, 5, 6), [10, 20]) == 0


@needs_triton
def test_every_coefficient_is_quantised_exactly():
    """The kernels' quotient, rounded in float32, for all coefficients that can occur and all steps; fused or not."""
    coefficients = torch.arange(-8192, 8193)
    moved = (coefficients + coefficients.sign() / 4).to(torch.float32)
    magic = 12582912.0
    for step in range(1, 256):
        expected = coefficients.sign() * ((2 * coefficients.abs() + 8 * step) // (16 * step))
        reciprocal = torch.tensor(1 / (8 * step), dtype=torch.float32)
        product = moved * reciprocal
        # In float64 the product of two float32 is exact: the sum alone is rounded to float32, as by a fused one.
        fused = (moved.double() * reciprocal.double() + magic).to(torch.float32)
        assert (product + magic - magic).long().equal(expected)
        assert (fused - magic).long().equal(expected)


def test_tables():
    """Steps and reciprocals, unpacked as the kernels do."""
    tables = cuda._tables(torch.device("cpu"))
    for quality in (0, 1, 33, 100):
        for chroma in (False, True):
            steps = quant_table(quality, chroma).flatten()
            packed = tables[quality, int(chroma)]
            assert (packed >> 32).equal(steps)
            low = torch.from_numpy(packed.numpy().astype(np.int32).view(np.float32))
            assert low.equal((1 / (8 * steps.double())).float())


def compile_for_hopper(kernel: str, constants: dict) -> tuple[str, str]:
    """A kernel compiled for compute capability 9.0, which takes no GPU: its PTX, and what it uses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kdstream.jpeg import cuda_kernels

    types = {"images": "*u8", "qualities": "*u8", "tables": "*i64", "versions": "*i64"}
    types["chroma"] = "*i64" if kernel == "chroma_kernel" else "*i32"
    function = getattr(cuda_kernels, kernel)
    constants = {**constants, "BLOCKS": cuda._BLOCKS, "HOPPER": True}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in function.arg_names}
    source = ASTSource(function, signature, {(function.arg_names.index(name),): v for name, v in constants.items()})
    options = {"num_warps": cuda._BLOCKS // 4, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        command = [cuobjdump, "--dump-resource-usage", file]
        usage = subprocess.run(command, capture_output=True, check=True, text=True)
    return compiled.asm["ptx"], usage.stdout


@needs_triton
def test_compiles_for_a_gpu_and_stays_in_registers(compiling):
    for kernel, constants in [
        ("pixels_kernel", {"KIND": "grey", "BOX": False, "WORD": 8}),
        ("pixels_kernel", {"KIND": "colour", "BOX": False, "WORD": 8}),
        ("pixels_kernel", {"KIND": "halved", "BOX": False, "WORD": 8}),
        ("chroma_kernel", {}),
    ]:
        ptx, usage = compiling.submit(compile_for_hopper, kernel, constants).result()
        registers, stack, local = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL"))
        # Two 64-bit values that wait outside of the loop are all that may be spilled.
        assert stack <= 16, (kernel, constants)
        assert local == 0, (kernel, constants)
        assert registers <= 128, (kernel, constants)
        # Whole rows of 8 samples are stored at once, and their limits cost one instruction.
        assert re.search(r"st\.global\S*\.b64", ptx), (kernel, constants)
        assert "min.relu.s32" in ptx, (kernel, constants)


def test_triton_is_imported_only_when_needed(interpreting):
    assert not interpreting.submit(had_triton).result()


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not cuda.available()
    with pytest.raises(UserError, match="Triton is not installed"):
        cuda.roundtrip(noise(1, 3, 8, 8), [50])


@needs_triton
def test_with_triton():
    assert cuda.available()


def refusal(call: str) -> str:
    """What roundtrip or fastest says about images on the host, in a process where kernels are compiled."""
    with pytest.raises(UserError) as raised:
        getattr(cuda, call)(noise(1, 3, 8, 8), [50])
    return str(raised.value)


@needs_triton
@pytest.mark.parametrize("call", ["roundtrip", "fastest"])
def test_images_on_the_host(compiling, call):
    assert "on a CUDA device, got cpu" in compiling.submit(refusal, call).result()


@pytest.mark.parametrize(
    ("images", "qualities", "subsampling", "message"),
    [
        (torch.zeros(1, 3, 8, 8), [50], "4:4:4", "uint8.*float32"),
        (noise(1, 2, 8, 8), [50], "4:4:4", "C = 1 or 3"),
        (noise(1, 3, 8, 8), [101], "4:4:4", "out of range"),
        (noise(2, 3, 8, 8), torch.full((3, 4), 50), "4:4:4", r"\[2,Q\].*\[3, 4\]"),
        (noise(1, 3, 8, 8), [50], "4:2:2", "subsampling"),
    ],
)
def test_bad_input(images, qualities, subsampling, message):
    with pytest.raises(UserError, match=message):
        cuda.roundtrip(images, qualities, subsampling)
