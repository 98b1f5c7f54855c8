"""The front chooses a backend by device and by what is installed, and hands over what it was given."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdstream import jpeg
from kdstream.errors import UserError
from kdstream.jpeg import cpu, cuda, reference

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 19, 22), dtype=np.uint8))


def through_pillow(pixels: np.ndarray, quality: int, level: int) -> np.ndarray:
    """Pixels [C,H,W] saved as JPEG and opened again."""
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy()).save(
        file, format="JPEG", quality=quality, subsampling=level
    )
    decoded = np.array(Image.open(file))
    return decoded[None] if len(pixels) == 1 else decoded.transpose(2, 0, 1)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    channels=st.sampled_from([1, 3]),
    quality=st.integers(0, 100),
    subsampling=st.sampled_from([("4:4:4", 0), ("4:2:0", 2)]),
    backend=st.sampled_from(["auto", "cpu", "reference"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_backend_equals_pillow(height, width, channels, quality, subsampling, backend, seed):
    name, level = subsampling
    pixels = np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)
    ours = jpeg.roundtrip(torch.from_numpy(pixels)[None], torch.tensor([[quality]]), name, backend)
    assert ours.shape == (1, 1, channels, height, width)
    assert np.array_equal(ours[0, 0].numpy(), through_pillow(pixels, quality, level))


def test_one_quality_per_image_makes_one_version():
    qualities = torch.tensor([[20], [90]])
    made = jpeg.roundtrip(IMAGES, qualities, "4:2:0")
    assert made.shape == (2, 1, 3, 19, 22)
    for image, version, (quality,) in zip(IMAGES, made, qualities.tolist(), strict=True):
        assert np.array_equal(version[0].numpy(), through_pillow(image.numpy(), quality, 2))


@pytest.mark.parametrize(("backend", "module"), [("auto", cpu), ("cpu", cpu), ("cuda", cuda), ("reference", reference)])
def test_backends_get_what_was_given(backend, module, monkeypatch):
    answer = object()
    calls = []
    monkeypatch.setattr(module, "roundtrip", lambda *given: (calls.append(given), answer)[1])
    if backend != "reference":
        monkeypatch.setattr(module, "available", lambda: True)
    assert jpeg.roundtrip(IMAGES, [1, 2], "4:2:0", backend=backend) is answer
    ((images, qualities, subsampling),) = calls
    assert images is IMAGES
    assert (qualities, subsampling) == ([1, 2], "4:2:0")


@pytest.mark.parametrize(("place", "module"), [("cpu", cpu), ("cuda", cuda)])
def test_auto_takes_the_reference_where_the_fast_backend_is_missing(place, module, monkeypatch):
    class Elsewhere(torch.Tensor):
        """A tensor that says that it is on a device."""

        device = torch.device(place)

    images = IMAGES.as_subclass(Elsewhere)
    monkeypatch.setattr(module, "available", lambda: True)
    assert jpeg._chosen(images, "auto") is module.roundtrip
    monkeypatch.setattr(module, "available", lambda: False)
    assert jpeg._chosen(images, "auto") is reference.roundtrip


def test_auto_takes_the_reference_on_other_devices():
    assert jpeg._chosen(torch.empty(1, 3, 8, 8, dtype=torch.uint8, device="meta"), "auto") is reference.roundtrip


@pytest.mark.parametrize(("backend", "package"), [("cpu", "numba"), ("cuda", "triton")])
def test_backend_that_is_not_installed(backend, package, monkeypatch):
    monkeypatch.setattr({"cpu": cpu, "cuda": cuda}[backend], "available", lambda: False)
    with pytest.raises(UserError, match=f"{backend}.*install {package}"):
        jpeg.roundtrip(IMAGES, [50], backend=backend)


def test_without_numba_the_result_is_the_same():
    program = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch; from kdstream import jpeg\n"
        "images = torch.arange(3 * 64, dtype=torch.uint8).view(1, 3, 8, 8)\n"
        "print(jpeg.roundtrip(images, [30]).sum().item(), 'kdstream.jpeg.cpu_kernel' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    images = torch.arange(3 * 64, dtype=torch.uint8).view(1, 3, 8, 8)
    assert done.stdout.split() == [str(int(jpeg.roundtrip(images, [30]).sum())), "False"]


@pytest.mark.parametrize("backend", ["gpu", "numba", None, 0])
def test_unknown_backend(backend):
    with pytest.raises(UserError, match="unknown JPEG backend"):
        jpeg.roundtrip(IMAGES, [50], backend=backend)


def test_something_else_than_a_tensor():
    with pytest.raises(UserError, match=r"uint8 tensor.*ndarray"):
        jpeg.roundtrip(IMAGES.numpy(), [50])
