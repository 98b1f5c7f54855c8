"""decode: pixels and labels of samples, upright unless asked otherwise; what is none names its sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import encoded, exif
from PIL import Image
from tars import write_tar

from kdstream.errors import UserError
from kdstream.stream.decode import decode
from kdstream.stream.stream import Stream


def test_a_broken_image_names_its_sample(tmp_path):
    write_tar(tmp_path / "own-000000.tar", [("a.jpg", b"\xff\xd8\xff garbage"), ("a.cls", b"0")])
    with pytest.raises(UserError, match=r"'a'"):
        next(iter(Stream(tmp_path, 1) | "decode"))


def test_decode_leaves_images_as_they_are_stored_when_asked():
    sample = {"__key__": "k", "jpg": encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif(6)), "cls": b"3"}
    assert next(decode(iter([dict(sample)])))["image"].shape == (3, 8, 4)
    assert next(decode(upright=False)(iter([dict(sample)])))["image"].shape == (3, 4, 8)


@given(
    height=st.integers(1, 9), width=st.integers(1, 9), label=st.integers(0, 999), ending=st.sampled_from(["png", "PNG"])
)
def test_pixels_come_as_they_are(height, width, label, ending):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    sample = {"__key__": "a", "cls": b"%d" % label, ending: encoded(Image.fromarray(pixels), "PNG"), "json": b"{}"}
    (found,) = decode(iter([sample]))
    assert found["image"].equal(torch.from_numpy(pixels).permute(2, 0, 1))
    assert (found["label"], found["json"]) == (label, b"{}")


def test_a_sample_without_image_names_its_members():
    with pytest.raises(UserError, match=r"^sample 'a' of x\.tar holds no image: its members are cls, txt$"):
        next(decode(iter([{"__key__": "a", "__url__": "x.tar", "cls": b"1", "txt": b""}])))
