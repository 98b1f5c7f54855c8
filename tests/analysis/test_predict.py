"""Predictions: of every kind of picture, as a network's evaluation saw them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from kdstream.analysis.predict import predict, view_of
from kdstream.errors import UserError
from kdstream.models import build
from kdstream.models.export import describe
from kdstream.stream.augment import augment
from kdstream.stream.decode import decode

CLASSES = ["a", "b", "c"]


def network(stream: str | None = "decode | augment(cifar)", eval_stream: str | None = None, **about):
    torch.manual_seed(0)
    recipe = {"stream": stream, **({"eval_stream": eval_stream} if eval_stream else {})}
    told = {
        "classes": CLASSES,
        "mean": [0.4] * 3,
        "std": [0.2] * 3,
        "image_size": [16, 16],
        "extra": {"recipe": recipe},
    }
    return describe(build("resnet8", 3).eval(), {**told, **about})


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def test_files_arrays_tensors_and_pictures_of_the_same_pixels_are_answered_alike(pixels, tmp_path):
    net = network()
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    one = predict(net, path)
    logits = net((tensor[None] / 255 - 0.4) / 0.2)[0]
    expected = dict(zip(CLASSES, logits.softmax(0).tolist(), strict=True))
    assert dict(one.top) == pytest.approx(expected, rel=1e-5)
    assert (one.label, one.number, one.source) == (max(expected, key=expected.get), int(logits.argmax()), str(path))
    for same in (pixels, tensor, tensor / 255, Image.fromarray(pixels)):
        assert dict(predict(net, same).top) == pytest.approx(dict(one.top), rel=1e-5)
    several = predict(net, [path, pixels, tensor[None].repeat(2, 1, 1, 1)], top=1, batch_size=3)
    assert [p.label for p in several] == [one.label] * 4
    assert all(len(p.top) == 1 for p in several)
    assert [p.label for p in predict(net, tmp_path)] == [one.label]
    assert not net.training


def test_a_phones_orientation_grey_alpha_and_cmyk_count_as_decode_has_them(pixels, tmp_path):
    net = network()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(tmp_path / "alpha.png")
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.jpg")
    for path in sorted(tmp_path.iterdir()):
        kind = "jpg" if path.suffix == ".jpg" else "png"
        sample = next(decode()(iter([{"__key__": "a", "__url__": "b", kind: path.read_bytes(), "cls": b"0"}])))
        assert predict(net, path).top == predict(net, sample["image"]).top, path.name
    assert predict(net, tmp_path / "turned.png").top == predict(net, np.rot90(pixels, -1).copy()).top


@pytest.mark.parametrize(
    ("stream", "eval_stream", "view"),
    [
        ("decode | augment(inception, 24, interpolation=bicubic)", None, ("eval", 24, 0.875, "bicubic")),
        ("decode", "decode | augment(eval, 20, crop=0.5)", ("eval", 20, 0.5, "bilinear")),
        ("decode | augment(cifar)", None, ("eval", 16, 1.0, "bilinear")),  # of an image as it is, all is kept
    ],
)
def test_the_view_is_that_of_the_evaluation(stream, eval_stream, view):
    image = torch.randint(0, 256, (3, 40, 61), dtype=torch.uint8)
    kind, size, crop, interpolation = view
    cut = augment(kind, size, crop=crop, interpolation=interpolation)(iter([{"image": image}]))
    expected = (next(cut)["image"] / 255 - 0.4) / 0.2
    assert torch.allclose(view_of(network(stream, eval_stream))(image), expected, atol=1e-6)


def test_what_cannot_be_predicted_is_one_line(pixels, tmp_path):
    net = network()
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"hello")
    with pytest.raises(UserError, match=r"bad.png: cannot be read: it is text"):
        predict(net, [pixels, bad])
    found = predict(net, [bad, pixels, tmp_path / "none.png"], on_error="skip")
    assert [one.error is None for one in found] == [False, True, False]
    assert (found[0].label, found[0].top) == (None, ())
    for images, said in [
        (pixels.transpose(2, 0, 1), "tensors are"),
        (torch.from_numpy(pixels), "arrays are"),
        (torch.full((3, 16, 16), 1.5), r"in \[0,1\]"),
        (3, "int is no image"),
        (tmp_path / "nothing", "No such file"),
    ]:
        with pytest.raises(UserError, match=said):
            predict(net, images)
    with pytest.raises(UserError, match="mean and std"):
        predict(network(mean=None), pixels)
    with pytest.raises(UserError, match=r"my_stages:blur"):
        predict(network(eval_stream="decode | my_stages:blur"), pixels)
    with pytest.raises(UserError, match="top is 0"):
        predict(net, pixels, top=0)
