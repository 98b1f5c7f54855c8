"""boxes: a view cut while decoding is that of the whole image within a grey level; the same for ever after."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from image_bytes import encoded, exif
from photographs import jpeg, photograph
from PIL import Image
from tars import write_tar

import kdstream as kd
from kdstream.errors import UserError
from kdstream.rng import sample_keys
from kdstream.stream.augment import augment, cut_boxes, random_box, random_flip
from kdstream.stream.boxes import BoxReader, cut_while_decoding
from kdstream.stream.decode import decode
from kdstream.stream.language import parse_chain
from kdstream.stream.planning import unaugmented
from kdstream.stream.stream import Stream

READER = BoxReader(True, 10**6, 48, (0.08, 1.0), (3 / 4, 4 / 3), "bilinear", flip=True)


def samples(files):
    keys = sample_keys(0, 0, torch.arange(len(files))).tolist()
    return [
        {"__key__": str(i), "__url__": "x.tar", name: data, "cls": b"%d" % i, "index": i, "rng_key": key}
        for i, ((name, data), key) in enumerate(zip(files, keys, strict=True))
    ]


def views(reader, files):
    out = torch.zeros(len(files), 3, reader.size, reader.size, dtype=torch.uint8)
    reader.views(samples(files), out)
    return out


def two_stages(reader, files):
    """What decode | random_box | random_flip give: the whole image, cut by torchvision."""
    names = ("size", "scale", "ratio", "interpolation")
    boxes = random_box(**{name: getattr(reader, name) for name in names})
    made = list(boxes(decode(upright=reader.upright)(iter(samples(files)))))
    image = torch.stack([sample["image"] for sample in made])
    key = torch.tensor([sample["rng_key"] for sample in made])
    batch = kd.Batch(image, key, torch.arange(len(made)), rng_key=key)
    return next(random_flip(iter([batch]))).image if reader.flip else image


def gap(first, second):
    """The mean difference of each view."""
    return (first.float() - second.float()).abs().mean((1, 2, 3))


FILES = [
    *[("jpg", jpeg(photograph(h, w, n), quality=q, subsampling=s))
      for n, (h, w, q, s) in enumerate([(90, 131, 95, 0), (151, 77, 90, 2), (333, 250, 75, 2), (64, 65, 85, 1)])],
    *[("jpg", jpeg(photograph(101, 67, n), quality=90, subsampling=2, exif=exif(n))) for n in range(1, 9)],
    ("jpg", jpeg(photograph(83, 120, 20).convert("L"), quality=90)),
    ("jpg", jpeg(photograph(83, 120, 21), progressive=True)),
    ("jpg", jpeg(photograph(83, 120, 22).convert("CMYK"))),
    ("png", encoded(photograph(50, 71, 23), "PNG")),
    ("jpg", jpeg(photograph(17, 9, 24), subsampling=2)),
    ("jpg", jpeg(Image.new("RGB", (1, 1), (200, 30, 90)))),
]  # fmt: skip


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [48, 7])
def test_views_are_those_of_whole_images_within_a_grey_level(interpolation, size):
    reader = dataclasses.replace(READER, interpolation=interpolation, size=size)
    many = [file for file in FILES for _ in range(3)]  # with different boxes
    found = gap(views(reader, many), two_stages(reader, many))
    assert found.max() < 1, found
    assert found.mean() < 0.5


def test_files_are_turned_only_where_asked():
    reader = dataclasses.replace(READER, upright=False, flip=False)
    assert gap(views(reader, FILES[4:12]), two_stages(reader, FILES[4:12])).max() < 1
    turned = dataclasses.replace(READER, flip=False)
    assert gap(views(turned, FILES[5:12]), views(reader, FILES[5:12])).min() > 1


def test_pixels_are_the_same_on_every_machine():
    ramp = np.add.outer(np.arange(40) * 3, np.arange(56) * 2).astype(np.uint8)
    files = [("png", encoded(Image.fromarray(np.stack([ramp, ramp[::-1], 255 - ramp], -1)), "PNG"))] * 3
    found = views(dataclasses.replace(READER, size=16), files)
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16] == "a139b433885bf719"


def test_which_chains_it_stands_for():
    def taken(text):
        boxes, host, device = cut_while_decoding(*parse_chain(text).split())
        return boxes is not None and boxes.flip, [s.name for s in host.stages], [s.name for s in device.stages]

    assert taken("decode | augment(inception, 24) | normalize(mean=[0], std=[1])") == (True, [], ["normalize"])
    assert taken("decode(upright=false) | augment(inception, 24, flip=false)") == (False, [], [])
    for text in [
        "decode | augment(inception, 24, exact=true)",
        "decode | coded(fixed(50)) | augment(inception, 24)",
        "decode | augment(eval, 24)",
        "decode | augment(cifar)",
    ]:
        host, device = parse_chain(text).split()
        assert cut_while_decoding(host, device) == (None, host, device)
    chain = kd.decode() | random_box(size=8) | kd.stage(lambda samples: samples) | random_flip
    boxes, host, device = cut_while_decoding(*chain.split())
    assert (boxes.flip, len(host.stages), device.stages) == (False, 1, (random_flip,))
    with pytest.raises(UserError, match="exact is 1"):
        augment("inception", 24, exact=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    members = [(f"{i:02}.{name}", data) for i, (name, data) in enumerate(FILES)]
    members += [(f"{i:02}.cls", b"%d" % (i % 3)) for i in range(len(FILES))]
    write_tar(folder / "own-000000.tar", sorted(members))
    return folder


CHAIN = "decode | augment(inception, 24)"


def pixels(stream):
    return torch.cat([batch.image for batch in stream])


def test_every_number_of_readers_gives_the_same_batches(shards):
    alone = list(Stream(shards, 4, seed=3) | CHAIN)
    for batch, other in zip(alone, Stream(shards, 4, seed=3, workers=2) | CHAIN, strict=True):
        assert batch.image.equal(other.image)
        assert batch.label.equal(other.label)
        assert batch.index.equal(other.index)
    ranks = [list(Stream(shards, 4, seed=3, rank=rank, world=2) | CHAIN) for rank in range(2)]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert torch.cat([part.image for part in parts]).equal(batch.image)
    whole = pixels(Stream(shards, 4, seed=3) | "decode | augment(inception, 24, exact=true)")
    assert 0 < gap(pixels(alone), whole).max() < 1


def test_stages_of_the_user_s_see_the_views(shards):
    @kd.stage
    def inverted(samples):
        for sample in samples:
            sample["image"] = 255 - sample["image"]
            yield sample

    plain = pixels(Stream(shards, 4) | CHAIN)
    assert pixels(Stream(shards, 4) | "decode | augment(inception, 24, flip=false)" | inverted | random_flip).equal(
        255 - plain
    )


def test_a_training_goes_on_with_the_pixels_it_began_with(shards):
    stream = Stream(shards, 4) | CHAIN
    now = pixels(stream)
    state = stream.state_dict()
    assert state == {"epoch": 1, "step": 0, "boxes": 1}
    stream.load_state_dict({"epoch": 0, "step": 1, "boxes": 1})
    assert pixels(stream).equal(now[4:])
    old = Stream(shards, 4) | CHAIN
    old.load_state_dict({"epoch": 0, "step": 1})  # of a version that decoded whole images
    exact = Stream(shards, 4) | "decode | augment(inception, 24, exact=true)"
    assert pixels(old).equal(pixels(exact)[4:])
    assert old.state_dict() == {"epoch": 1, "step": 0}
    for wrong in (old, exact):
        wrong.load_state_dict({"epoch": 0, "step": 1, "boxes": 2})
        with pytest.raises(UserError, match="in a way that this stream does not have"):
            next(iter(wrong))


def test_the_device_cuts_the_same_boxes(shards):
    exact = pixels(Stream(shards, 4) | "decode | augment(inception, 24, exact=true)")
    for interpolation in ("bilinear", "bicubic"):
        text = f"decode | augment(inception, 24, interpolation={interpolation}, on=DEVICE)"
        stream = Stream(shards, 4) | text.replace("DEVICE", "device")
        batches = list(stream)
        found = pixels(batches)
        assert found.equal(pixels(Stream(shards, 4, workers=1) | text.replace("DEVICE", "device")))
        assert gap(found, pixels(Stream(shards, 4) | text.replace("DEVICE", "host"))).max() < 2
        assert (interpolation == "bilinear") == found.equal(exact)
        assert batches[0].pixels is None
        assert stream.state_dict() == {"epoch": 1, "step": 0}


def test_on_the_device_goes_with_what_follows(shards):
    text = "decode | augment(inception, 24, on=device, jitter=[0.4, 0.4, 0.4, 0.1]) | coded(fixed(50), plan=off)"
    batch = next(iter(Stream(shards, 4) | text))
    assert batch.image.shape == (4, 3, 24, 24)
    assert batch.variants.shape == (4, 1, 3, 24, 24)
    view = unaugmented(parse_chain("decode | augment(inception, 24, on=device) | coded").stages, 4)
    assert [stage.name for stage in view.stages[:2]] == ["decode", "center_box"]
    with pytest.raises(UserError, match="put coded after it"):
        next(iter(Stream(shards, 4) | "decode | coded(fixed(50), plan=off) | augment(inception, 24, on=device)"))
    with pytest.raises(UserError, match="no whole images to cut"):
        next(iter(Stream(shards, 4) | decode | random_box(size=8) | cut_boxes(size=8)))
    for wrong in ({"on": "gpu"}, {"on": "device", "exact": True}):
        with pytest.raises(UserError, match="on is"):
            augment("inception", 24, **wrong)


def test_what_is_wrong_with_a_file_is_told_as_ever(shards):
    broken = FILES[0][1][:-400]
    with pytest.raises(UserError, match=r"^cannot decode sample '0' of x\.tar \(jpg\)"):
        views(READER, [("jpg", broken)])
    with pytest.raises(UserError, match="max_pixels"):
        views(dataclasses.replace(READER, max_pixels=100), FILES[:1])
    with pytest.raises(UserError, match="holds no image"):
        views(READER, [("txt", b"")])
