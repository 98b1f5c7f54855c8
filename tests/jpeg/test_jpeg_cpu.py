"""The CPU kernel gives the reference's pixels, whatever the form of the images and the number of threads."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image
from torch.utils.data import DataLoader, Dataset

from kdstream.errors import UserError
from kdstream.jpeg import cpu, cpu_blocks, reference
from kdstream.jpeg.tables import quant_table, ycc_to_rgb_weights

SUBSAMPLINGS = ["4:4:4", "4:2:0"]


def draw(kind: str, count: int, channels: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Images [N,C,H,W]."""
    rng = np.random.default_rng(seed)
    shape = (count, channels, height, width)
    if kind == "noise":
        images = rng.integers(0, 256, shape)
    elif kind == "black and white":
        images = 255 * rng.integers(0, 2, shape)
    elif kind == "gradient":
        y, x = np.mgrid[:height, :width]
        slopes = rng.uniform(-8, 8, (2, count, channels, 1, 1))
        images = rng.uniform(0, 256, (count, channels, 1, 1)) + slopes[0] * x + slopes[1] * y
    else:
        photo = load_sample_image("china.jpg").transpose(2, 0, 1)
        corners = [(rng.integers(0, 427 - height + 1), rng.integers(0, 640 - width + 1)) for _ in range(count)]
        images = np.stack([photo[:channels, top : top + height, left : left + width] for top, left in corners])
    return torch.from_numpy(np.clip(images, 0, 255).astype(np.uint8))


def assert_same(images, qualities, subsampling):
    ours = cpu.roundtrip(images, qualities, subsampling)
    expected = reference.roundtrip(images, qualities, subsampling)
    assert ours.dtype == torch.uint8
    assert ours.shape == expected.shape
    assert ours.is_contiguous()
    assert int((ours != expected).sum()) == 0


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(["noise", "black and white", "gradient", "photo"]),
    count=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    subsampling=st.sampled_from(SUBSAMPLINGS),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_reference(data, kind, count, channels, height, width, subsampling, seed):
    many = data.draw(st.integers(1, 4))
    rows = 1 if data.draw(st.booleans()) else count
    drawn = data.draw(st.lists(st.integers(0, 100), min_size=rows * many, max_size=rows * many))
    qualities = torch.tensor(drawn).view(rows, many)
    if rows == 1 and count > 1:
        qualities = qualities[0]
    assert_same(draw(kind, count, channels, height, width, seed), qualities, subsampling)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_quality(channels, subsampling):
    assert_same(draw("photo", 2, channels, 43, 37, seed=5), range(101), subsampling)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_every_small_size(subsampling):
    """Fewer blocks than a group has, one of them cut, and the chroma columns that are not filtered."""
    for height in (1, 2, 3, 5, 8, 9, 15, 16, 17):
        for width in range(1, 19):
            assert_same(draw("noise", 2, 3, height, width, seed=19 * height + width), [3, 80], subsampling)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("own", [False, True])
def test_groups_of_blocks_that_span_images(own, subsampling):
    """Groups begin and end in the middle of rows and of images, with one quality or with many in a group."""
    images = draw("noise", 41, 3, 9, 23, seed=2)
    assert_same(images, torch.arange(82).view(41, 2) if own else [10, 60], subsampling)


@pytest.mark.parametrize("pattern", ["26a2037f24ea907c", "ffa7942fe78beff4"])
def test_samples_far_out_of_range_are_limited(pattern):
    block = torch.tensor([int(bit) * 255 for bit in f"{int(pattern, 16):064b}"], dtype=torch.uint8).view(1, 1, 8, 8)
    assert_same(block, range(8), "4:4:4")


@pytest.mark.parametrize("width", [1, 4, 6, 640])
def test_large_images_are_cut_into_bands(width, monkeypatch):
    monkeypatch.setattr(cpu, "_PIECE", 16 * 80)
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :, :width]
    many, band = cpu._piece(427, width)
    assert (many, band) == (1, 5 if width < 640 else 4)
    assert_same(image, [0, 30, 95], "4:2:0")


def test_pieces_of_several_small_images(monkeypatch):
    monkeypatch.setattr(cpu, "_PIECE", 3 * 32 * 48)
    assert cpu._piece(20, 40) == (3, 2)
    assert_same(draw("photo", 7, 3, 20, 40, seed=3), torch.arange(14).view(7, 2) * 7, "4:2:0")


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_strided_images(subsampling):
    pixels = draw("photo", 3, 3, 40, 36, seed=1)
    for view in (
        pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        pixels.transpose(2, 3),
        pixels[::2, :, 1::3, 5:30:2],
        pixels[:1].expand(4, -1, -1, -1),
        pixels[:, :, :, :1].expand(-1, -1, -1, 20),
        pixels[:, 1:2],
    ):
        before = view.clone()
        assert_same(view, [5, 60], subsampling)
        assert view.equal(before)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_nothing_around_the_images_is_written(subsampling):
    """Images in the middle of other memory: that memory is left alone, and does not matter."""
    for height, width in ((1, 1), (9, 7), (24, 33)):
        around = draw("noise", 1, 3, height + 4, width + 140, seed=height)
        inside = around[:, :, 2:-2, 70:-70]
        before = around.clone()
        first = cpu.roundtrip(inside, [40], subsampling)
        assert around.equal(before)
        assert first.equal(cpu.roundtrip(inside.clone(), [40], subsampling))


@pytest.mark.parametrize("shape", [(0, 3, 5, 6), (0, 1, 8, 8)])
def test_no_images(shape):
    assert cpu.roundtrip(torch.zeros(shape, dtype=torch.uint8), [1, 2]).shape == (0, 2, *shape[1:])


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_threads_share_the_work(subsampling, monkeypatch):
    images = draw("photo", 9, 3, 30, 50, seed=4)
    qualities = torch.arange(18).view(9, 2) * 5
    alone = cpu.roundtrip(images, qualities, subsampling)
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread)))
    monkeypatch.setattr(cpu, "_SAMPLES_FOR_A_THREAD", 1)
    monkeypatch.setattr(cpu, "_PIECE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert cpu.roundtrip(images, qualities, subsampling).equal(alone)
    assert len(started) == 3
    assert not any(thread.is_alive() for thread in started)


class _Threads(Dataset):
    """What a DataLoader's worker does: how many threads it would take, and a result."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        torch.set_num_threads(4)
        return cpu._threads(1 << 40), cpu.roundtrip(draw("photo", 1, 3, 24, 24, seed=6), [30])


def test_workers_use_no_threads_and_forking_is_safe(monkeypatch):
    """The kernel and its threads have been used before the worker is forked."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert cpu._threads(1 << 40) == 4
    assert cpu._threads(1) == 1
    monkeypatch.setattr(cpu, "_SAMPLES_FOR_A_THREAD", 1)
    expected = cpu.roundtrip(draw("photo", 1, 3, 24, 24, seed=6), [30])
    (threads, result), *_ = DataLoader(_Threads(), num_workers=1, batch_size=None, multiprocessing_context="fork")
    assert threads == 1
    assert result.equal(expected)


def test_quantisation_is_exact_for_all_coefficients():
    """Two multiplications round c / (16 step) as division does: all odd c of a block, all qualities."""
    words = cpu_blocks.quantisation_words()
    low, high = words & 0xFFFF, (words >> 16) & 0xFFFF
    factors = torch.stack([low, high]).reshape(-1, 3).unique(dim=0)
    steps = torch.cat([quant_table(torch.arange(101), chroma).flatten() for chroma in (False, True)]).unique()
    assert factors[:, 2].sort().values.equal(steps)
    c = torch.arange(-2 * 8300 - 1, 2 * 8300 + 2, 2)
    for reciprocal, scale, step in factors.tolist():
        assert max(reciprocal, scale) < 1 << 15
        ours = (((c * reciprocal) >> 16) * scale + (1 << 14)) >> 15
        exact = c.sign() * ((c.abs() + 8 * step) // (16 * step))
        assert torch.equal(ours, exact), step


def test_rounding_multiplications_give_the_chroma_terms_of_red_and_blue():
    chroma = torch.arange(-128, 128)
    weights, _ = ycc_to_rgb_weights()
    for weight in (int(weights[0, 2]), int(weights[2, 1])):
        ours = (2 * chroma * cpu_blocks._rounded(weight, 2) + (1 << 14)) >> 15
        assert torch.equal(ours, (weight * chroma + (1 << 15)) >> 16)


def test_importing_the_package_does_not_import_numba():
    program = "import sys, kdstream.jpeg.cpu; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("images", "qualities", "subsampling", "message"),
    [
        (torch.zeros(1, 3, 8, 8), [50], "4:4:4", "uint8.*float32"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.uint8), [50], "4:4:4", "C = 1 or 3"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [101], "4:4:4", "quality 101 is out of range"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.full((3, 1), 5), "4:4:4", r"\[2,Q\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [50], "4:2:2", "subsampling"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device="meta"), [50], "4:4:4", "'cpu' got images on meta"),
    ],
)
def test_bad_input(images, qualities, subsampling, message):
    with pytest.raises(UserError, match=message):
        cpu.roundtrip(images, qualities, subsampling)
