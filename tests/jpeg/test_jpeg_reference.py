"""The reference round trip gives Pillow's pixels, all of them, whatever the form in which images are handed over."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

import kdstream.jpeg.reference as reference
from kdstream.errors import UserError
from kdstream.jpeg.reference import roundtrip
from kdstream.jpeg.tables import quant_table

SUBSAMPLINGS = {"4:4:4": 0, "4:2:0": 2}


def through_pillow(image: Tensor, **save_options) -> Tensor:
    """One image [C,H,W] saved as JPEG and opened again."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(file, format="JPEG", **save_options)
    decoded = np.array(Image.open(io.BytesIO(file.getvalue())))
    return torch.from_numpy(decoded.reshape(pixels.shape)).permute(2, 0, 1)


def expected(images: Tensor, qualities: Tensor, subsampling: str) -> Tensor:
    """What :func:`roundtrip` has to give for images [N,C,H,W] and qualities [N,Q]."""
    return torch.stack(
        [
            torch.stack([through_pillow(image, quality=int(q), subsampling=SUBSAMPLINGS[subsampling]) for q in asked])
            for image, asked in zip(images, qualities, strict=True)
        ]
    )


def differing(ours: Tensor, theirs: Tensor) -> int:
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.uint8
    return int((ours != theirs).sum())


def draw(kind: str, channels: int, height: int, width: int, seed: int) -> Tensor:
    """An image [C,H,W] of a kind."""
    rng = np.random.default_rng(seed)
    shape = (channels, height, width)
    y, x = np.mgrid[:height, :width]
    if kind == "noise":
        image = rng.integers(0, 256, shape)
    elif kind == "black and white":
        image = 255 * rng.integers(0, 2, shape)
    elif kind == "checkerboard":
        size = rng.integers(1, 9, (2, channels, 1, 1))
        image = 255 * ((x // size[0] + y // size[1]) % 2)
    elif kind == "gradient":
        slope = rng.uniform(-8, 8, (2, channels, 1, 1))
        image = rng.uniform(0, 256, (channels, 1, 1)) + slope[0] * x + slope[1] * y
    elif kind == "flat":
        image = rng.integers(0, 256, (channels, 1, 1)) + 0 * x
    else:
        photo = load_sample_image(["china.jpg", "flower.jpg"][seed % 2])
        top, left = rng.integers(0, photo.shape[0] - height), rng.integers(0, photo.shape[1] - width)
        image = photo[top : top + height, left : left + width, :channels].transpose(2, 0, 1)
    return torch.from_numpy(np.clip(image, 0, 255).astype(np.uint8))


KINDS = ["noise", "black and white", "checkerboard", "gradient", "flat", "photo"]
cases = {
    "kind": st.sampled_from(KINDS),
    "channels": st.sampled_from([1, 3]),
    "height": st.integers(1, 70),
    "width": st.integers(1, 70),
    "subsampling": st.sampled_from(sorted(SUBSAMPLINGS)),
    "seed": st.integers(0, 2**32 - 1),
}


@settings(max_examples=250, deadline=None)
@given(quality=st.integers(0, 100), **cases)
def test_equals_pillow(kind, channels, height, width, quality, subsampling, seed):
    images = draw(kind, channels, height, width, seed)[None]
    qualities = torch.tensor([[quality]])
    assert differing(roundtrip(images, qualities, subsampling), expected(images, qualities, subsampling)) == 0


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_pillow_at_every_quality(channels, subsampling):
    images = draw("photo", channels, 43, 37, seed=5)[None]
    qualities = torch.arange(101)[None]
    assert differing(roundtrip(images, range(101), subsampling), expected(images, qualities, subsampling)) == 0


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_equals_pillow_at_every_small_size(subsampling):
    """Up to 18x18: one block and its neighbours, the 1 to 4 columns that are not filtered, odd and even ends."""
    qualities = torch.tensor([[3, 80]])
    for height in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 18):
        for width in range(1, 19):
            images = draw("noise", 3, height, width, seed=19 * height + width)[None]
            wrong = differing(roundtrip(images, qualities, subsampling), expected(images, qualities, subsampling))
            assert wrong == 0, (height, width)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("width", [1, 4, 6, 640])
def test_equals_pillow_on_images_that_are_cut_into_bands(width, subsampling, monkeypatch):
    if width < 640:
        monkeypatch.setattr(reference, "_SAMPLES_AT_A_TIME", 3 * 16 * 80)
    images = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :, :width]
    assert len(list(reference._pieces(images.shape))) > 1
    qualities = torch.tensor([[0, 30, 95]])
    assert differing(roundtrip(images, qualities, subsampling), expected(images, qualities, subsampling)) == 0


@pytest.mark.parametrize("pattern", ["26a2037f24ea907c", "ffa7942fe78beff4"])
def test_samples_far_out_of_range_are_limited(pattern):
    """Blocks (64 bits, black and white, found by search) that decode to 694 and to -416 before the limit."""
    block = torch.tensor([int(bit) * 255 for bit in f"{int(pattern, 16):064b}"], dtype=torch.uint8).view(1, 1, 8, 8)
    qualities = torch.arange(8)[None]
    assert differing(roundtrip(block, qualities), expected(block, qualities, "4:4:4")) == 0


def test_quality_0_is_libjpegs_0_and_not_the_default():
    """The same pixels as with the tables of quality 0 handed to Pillow, which leaves no room for interpretation."""
    image = draw("photo", 3, 33, 47, seed=1)
    tables = [quant_table(0, chroma).flatten().tolist() for chroma in (False, True)]
    ours = roundtrip(image[None], [0, 1, 75])[0]
    assert ours[0].equal(through_pillow(image, qtables=tables, subsampling=0))
    assert ours[0].equal(ours[1])
    assert ours[2].equal(through_pillow(image, quality=-1, subsampling=0))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), **cases)
def test_batches_equal_single_images_and_forms_of_qualities_agree(
    data, kind, channels, height, width, subsampling, seed
):
    count, many = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    images = torch.stack([draw(kind, channels, height, width, seed + i) for i in range(count)])
    shared = data.draw(st.lists(st.integers(0, 100), min_size=many, max_size=many))
    together = roundtrip(images, shared, subsampling)
    assert together.shape == (count, many, channels, height, width)
    assert together.equal(torch.cat([roundtrip(image[None], shared, subsampling) for image in images]))
    assert together.equal(torch.cat([roundtrip(images, [quality], subsampling) for quality in shared], dim=1))
    assert together.equal(roundtrip(images, torch.tensor([shared] * count), subsampling))
    own = torch.tensor(data.draw(st.lists(st.integers(0, 100), min_size=count * many, max_size=count * many)))
    own = own.view(count, many)
    alone = [roundtrip(image[None], row, subsampling) for image, row in zip(images, own, strict=True)]
    assert roundtrip(images, own, subsampling).equal(torch.cat(alone))


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_pieces_do_not_show(subsampling, monkeypatch):
    """The same result when images, bands and qualities are worked on in the smallest possible pieces."""
    images = torch.stack([draw(kind, 3, 53, 29, seed=7) for kind in KINDS])
    qualities = torch.arange(len(KINDS) * 4).view(-1, 4) * 4
    whole = roundtrip(images, qualities, subsampling)
    assert len(list(reference._pieces(images.shape))) == 1
    monkeypatch.setattr(reference, "_SAMPLES_AT_A_TIME", 1)
    monkeypatch.setattr(reference, "_MIN_BAND", 16)
    assert len(list(reference._pieces(images.shape))) == len(KINDS) * 4
    assert roundtrip(images, qualities, subsampling).equal(whole)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_strided_images(subsampling):
    pixels = torch.stack([draw("photo", 3, 40, 36, seed) for seed in range(3)])
    for view in (
        pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        pixels.transpose(2, 3),
        pixels[::2, :, 1::3, 5:30:2],
        pixels[:1].expand(4, -1, -1, -1),
        pixels[:, 1:2],
    ):
        assert not view.is_contiguous()
        before = view.clone()
        result = roundtrip(view, [5, 60], subsampling)
        assert result.is_contiguous()
        assert result.equal(roundtrip(before.contiguous(), [5, 60], subsampling))
        assert view.equal(before)


@pytest.mark.parametrize(
    "qualities",
    [(7, 0, 100), range(7, 8), np.array([7, 50]), torch.tensor([7, 9], dtype=torch.int32), torch.tensor([7]).byte()],
)
def test_kinds_of_sequences(qualities):
    images = draw("gradient", 3, 10, 12, seed=3)[None]
    assert roundtrip(images, qualities).equal(roundtrip(images, [int(quality) for quality in qualities]))


@pytest.mark.parametrize("qualities", [[10, 20], torch.zeros(0, 2, dtype=torch.int64)])
def test_no_images(qualities):
    assert roundtrip(torch.zeros(0, 3, 5, 6, dtype=torch.uint8), qualities).shape == (0, 2, 3, 5, 6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 8, 8), "uint8.*float32"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "uint8.*int64"),
        (np.zeros((1, 3, 8, 8), dtype=np.uint8), "uint8 tensor.*ndarray"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"shape.*\[3, 8, 8\]"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.uint8), "C = 1 or 3"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "C = 1 or 3"),
        (torch.zeros(1, 3, 0, 8, dtype=torch.uint8), "H, W >= 1"),
    ],
)
def test_bad_images(images, message):
    with pytest.raises(UserError, match=message):
        roundtrip(images, [50])


@pytest.mark.parametrize(
    ("qualities", "message"),
    [
        ([], "Q >= 1"),
        (50, "Q >= 1"),
        ([50, 101], "quality 101 is out of range"),
        ([-1], "quality -1 is out of range"),
        ([50.0], "float32"),
        ([True], "bool"),
        ([50, None], "None"),
        (["50"], "integers"),
        (torch.full((1, 4), 50), r"\[2,Q\].*\[1, 4\]"),
        (torch.full((3, 4), 50), r"\[2,Q\].*\[3, 4\]"),
        (torch.full((2, 1, 4), 50), r"\[2, 1, 4\]"),
        (torch.full((2, 0), 50), r"\[2, 0\]"),
    ],
)
def test_bad_qualities(qualities, message):
    with pytest.raises(UserError, match=message) as raised:
        roundtrip(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), qualities)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("subsampling", ["4:2:2", "444", 0, None])
def test_bad_subsampling(subsampling):
    with pytest.raises(UserError, match="subsampling"):
        roundtrip(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), [50], subsampling)
