"""decode(on=device): the boxes and nearly the pixels of decoding on the host; what cannot be decoded is told as ever.

Here the device is a CPU: the same way, but for nvJPEG and the kernel that cuts.
"""

from __future__ import annotations

import pytest
import torch
from image_bytes import encoded, exif
from photographs import jpeg, photograph
from tars import write_tar

import kdstream as kd
from kdstream.errors import UserError
from kdstream.jpeg.header import read_header
from kdstream.stream import device_files
from kdstream.stream.language import parse_chain
from kdstream.stream.planning import unaugmented
from kdstream.stream.stream import Stream

FILES = [
    *[("jpg", jpeg(photograph(h, w, n), quality=q, subsampling=s))
      for n, (h, w, q, s) in enumerate([(90, 131, 95, 0), (151, 77, 90, 2), (133, 150, 75, 2), (64, 65, 85, 1)])],
    ("jpg", jpeg(photograph(101, 67, 5), exif=exif(6))),
    ("jpg", jpeg(photograph(83, 120, 6).convert("L"), quality=90)),
    ("jpg", jpeg(photograph(83, 120, 7), progressive=True)),
    ("jpg", jpeg(photograph(83, 120, 8).convert("CMYK"))),
    ("png", encoded(photograph(50, 71, 9), "PNG")),
]  # fmt: skip
CHAIN = "decode(on=device) | augment(inception, 24, on=device)"


def shards_of(folder, files):
    folder.mkdir(exist_ok=True)
    members = [(f"{i:02}.{name}", data) for i, (name, data) in enumerate(files)]
    write_tar(folder / "own-000000.tar", sorted([*members, *((f"{i:02}.cls", b"1") for i in range(len(files)))]))
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return shards_of(tmp_path_factory.mktemp("photographs"), FILES)


def images(batches):
    return torch.cat([batch.image for batch in batches])


def test_boxes_are_those_of_the_host_and_readers_decode_no_ordinary_jpeg(shards, monkeypatch):
    given = []
    decoded = device_files.decoded
    monkeypatch.setattr(device_files, "decoded", lambda files, *rest: given.append(files) or decoded(files, *rest))
    batches = list(Stream(shards, 4, seed=3) | CHAIN)
    host = images(Stream(shards, 4, seed=3) | "decode | augment(inception, 24, exact=true)")
    assert (images(batches).float() - host.float()).abs().mean((1, 2, 3)).max() < 1
    seen = [number for batch in batches for number in batch.index.tolist()]
    assert sum(len(files.where) for files in given) == sum(number in (0, 1, 2, 3, 5) for number in seen)
    assert all(batch.files is None for batch in batches)
    assert all(files.data.device.type == "cpu" for files in given)


def test_every_number_of_readers_and_processes_gives_the_same_batches(shards):
    stream = Stream(shards, 4, seed=3) | CHAIN
    alone = list(stream)
    for batch, other in zip(alone, Stream(shards, 4, seed=3, workers=2) | CHAIN, strict=True):
        assert batch.image.equal(other.image)
        assert batch.label.equal(other.label)
    ranks = [list(Stream(shards, 4, seed=3, rank=rank, world=2) | CHAIN) for rank in range(2)]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert torch.cat([part.image for part in parts]).equal(batch.image)
    stream.load_state_dict({"epoch": 0, "step": 1})
    assert images(stream).equal(images(alone[1:]))


def refused_by_all(data):
    """A JPEG whose header is in order, but for a table that codes more values than its lengths have room for."""
    begin = data.index(b"\xff\xc4") + 5
    counts = bytearray(data[begin : begin + 16])
    longest = max(range(16), key=lambda i: counts[i])
    counts[longest] -= 3
    counts[0] += 3
    return data[:begin] + bytes(counts) + data[begin + 16 :]


def test_a_damaged_file_is_told_as_decode_tells_it(tmp_path):
    data = FILES[0][1]
    bad = refused_by_all(data)
    assert read_header(bad) is not None
    for name, damaged in (("table", bad), ("end", data[:-400])):
        folder = shards_of(tmp_path / name, [("jpg", damaged), *FILES[1:]])
        messages = []
        for chain in (CHAIN, "decode | augment(inception, 24, exact=true)"):
            with pytest.raises(UserError) as told:
                list(Stream(folder, 9) | chain)
            messages.append(str(told.value))
        assert messages[0] == messages[1]
        assert messages[0].startswith("cannot decode sample '00' of")


def test_what_the_device_s_decoder_refuses_the_host_decodes(shards, monkeypatch):
    import torchvision.io as io

    expected = images(Stream(shards, 4) | CHAIN)
    decode_jpeg = io.decode_jpeg

    def refusing(some, *args, **settings):
        if any(data.numel() == len(FILES[2][1]) for data in some):
            raise RuntimeError("not this one")
        return decode_jpeg(some, *args, **settings)

    monkeypatch.setattr(io, "decode_jpeg", refusing)
    assert images(Stream(shards, 4) | CHAIN).equal(expected)
    monkeypatch.setattr(io, "decode_jpeg", lambda *_, **__: [torch.zeros(3, 1, 1, dtype=torch.uint8)])
    with pytest.raises(UserError, match=r"torchvision decodes no JPEG on cpu .*another size.*on=host"):
        list(Stream(shards, 9) | CHAIN)


def test_what_it_does_not_go_with(shards):
    for rest, follows in (
        ("", "nothing"),
        (" | augment(inception, 24)", "random_box"),
        (" | augment(eval, 24)", "center_box"),
        (" | coded(fixed(50), plan=off) | augment(inception, 24, on=device)", "coded"),
    ):
        with pytest.raises(UserError, match=f"must follow at once, and here follows {follows}"):
            next(iter(Stream(shards, 4) | f"decode(on=device){rest}"))
    with pytest.raises(UserError, match="goes with on_error=stop alone"):
        next(iter(Stream(shards, 4, on_error="skip") | CHAIN))
    with pytest.raises(UserError, match="decode: on is 'gpu'"):
        next(iter(Stream(shards, 4) | "decode(on=gpu) | augment(inception, 24)"))


def test_a_coding_plan_is_that_of_decoding_on_the_host():
    views = [unaugmented(parse_chain(text).stages, 4) for text in (f"{CHAIN} | coded", f"decode{CHAIN[17:]} | coded")]
    assert str(views[0]) == str(views[1])
    assert kd.decode(on="device").setting("on") == "device"
