"""Images become 8-bit RGB in one way: depths, transparency, orientation, bombs, and files that are no images."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from image_bytes import chunk, encoded, exif, png, ramp, tiff
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from kdstream.data.image_file import ImageRefused, open_image, orientation, to_rgb, upright_size
from kdstream.data.image_stats import ImageStats
from kdstream.errors import UserError
from kdstream.stream.decode import decode, read_image

LEVELS = list(range(256))


def pixels(data: bytes, upright: bool = True) -> np.ndarray:
    """[H,W,3], read as training reads it."""
    return read_image(data, "it", upright).permute(1, 2, 0).numpy()


def row(data: bytes) -> list[int]:
    """The first row of an image that has to be grey."""
    found = pixels(data)
    assert (found == found[..., :1]).all()
    return found[0, :, 0].tolist()


def counted(data: bytes) -> ImageStats:
    stats = ImageStats()
    with open_image(data) as image:
        stats.add(image)
    return stats


def refused(data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        read_image(data, "it")
    assert "\n" not in str(caught.value)
    assert "damaged or was made" not in str(caught.value)
    with pytest.raises(ImageRefused), open_image(data) as image:
        to_rgb(image)
    return str(caught.value)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_upper_byte(form):
    data = encoded(Image.fromarray(ramp()), form)
    assert row(data) == LEVELS
    assert counted(data).mean_std()[0] == pytest.approx((0.5,) * 3)
    assert counted(data).adjusted == {"depth": 1}
    assert row(encoded(Image.fromarray(ramp(step=16)), form)) == [16 * i >> 8 for i in range(256)]  # 12 bits in 16


def test_16_bit_pgm_and_jpeg_2000():
    head = b"P5 256 2 65535\n"
    assert row(head + ramp().astype(">u2").tobytes()) == LEVELS
    assert row(b"P5 256 2 4095\n" + ramp(step=16).astype(">u2").tobytes())[::51] == [0, 51, 102, 153, 204, 255]
    if features.check("jpg_2000"):
        assert row(encoded(Image.fromarray(ramp()), "JPEG2000")) == LEVELS


def test_big_endian_and_white_is_zero_and_12_bits():
    values = ramp()[0]
    wide = {256: 256, 258: 16}
    assert row(tiff(wide, values.astype("<u2").tobytes())) == LEVELS
    assert row(tiff({**wide, 262: 0}, (65535 - values).astype("<u2").tobytes())) == LEVELS
    for mode, dtype in (("I;16", "<u2"), ("I;16B", ">u2"), ("I;16L", "<u2")):
        image = Image.frombytes(mode, (256, 2), ramp().astype(dtype).tobytes())
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == LEVELS
    packed = b"".join(struct.pack(">I", (a << 12 | b) << 8)[:3] for a, b in ((0, 4095), (2048, 160)))
    assert row(tiff({256: 4, 258: 12}, packed)) == [0, 255, 128, 10]


def test_16_bit_colour_keeps_its_upper_byte():
    values = np.stack([ramp()[0], ramp()[0][::-1], np.full(256, 0x12FF, np.uint16)], -1).astype(">u2")
    data = png(256, 1, 16, 2, [values.tobytes()])
    assert (pixels(data)[0] == values >> 8).all()
    assert counted(data).adjusted == {"depth": 1}
    data = tiff({256: 256, 258: (16, 16, 16), 262: 2, 277: 3}, values.astype("<u2").tobytes())
    assert (pixels(data)[0] == values >> 8).all()


def test_32_bit_integers_are_taken_for_16_bits_or_refused():
    assert row(encoded(Image.fromarray(ramp(np.int32)), "TIFF")) == LEVELS
    assert "from 0 to 16,711,680, whose range is not known" in refused(
        encoded(Image.fromarray(ramp(np.int32, 65536)), "TIFF")
    )
    assert "from -255 to 0" in refused(encoded(Image.fromarray(ramp(np.int32, -1)), "TIFF"))
    assert "from 0 to 255" in refused(encoded(Image.fromarray(ramp(np.int32, 1)), "TIFF"))  # 8 bits, or very dark
    assert row(encoded(Image.fromarray(ramp(np.int32, 0)), "TIFF")) == [0] * 256
    signed = ramp(step=100)[0].astype("<i2").tobytes()
    assert "range is not known" in refused(tiff({256: 256, 258: 16, 339: 2}, signed))


def test_floats_from_0_to_1_or_refused():
    unit = (np.arange(256) / 255).astype(np.float32)[None].repeat(2, 0)
    assert row(encoded(Image.fromarray(unit), "TIFF")) == LEVELS
    for values, expected in (
        (unit * 65535, "from 0 to 65535"),
        (unit - 0.5, "from -0.5 to 0.5"),
        (unit * np.nan, "nan"),
    ):
        assert expected in refused(encoded(Image.fromarray(values), "TIFF"))
    assert row(tiff({256: 256, 258: 32, 262: 0, 339: 3}, (1 - unit[0]).tobytes())) == LEVELS


def test_other_colour_models():
    colour = (200, 30, 90)
    plain = Image.new("RGB", (4, 4), colour)
    for mode in ("YCbCr", "HSV", "RGBX", "CMYK"):
        assert np.abs(np.asarray(to_rgb(plain.convert(mode)), int) - colour).max() <= 3
    assert np.abs(pixels(encoded(plain.convert("CMYK"), "JPEG", quality=100)).astype(int) - colour).max() <= 3
    assert np.abs(pixels(encoded(plain.convert("CMYK"), "TIFF")).astype(int) - colour).max() <= 3
    if features.check("littlecms2"):
        lab = tiff({258: (8, 8, 8), 262: 8, 277: 3}, bytes((137, 0, 0)))  # L = 54 %, no colour
        assert np.abs(pixels(lab).astype(int) - 129).max() <= 2
    assert np.asarray(to_rgb(Image.new("1", (1, 1), 1))).tolist() == [[[255] * 3]]
    assert np.asarray(to_rgb(plain.quantize(4))).tolist() == [[list(colour)] * 4] * 4
    assert row(png(2, 1, 8, 0, [b"\x07\x08"])) == [7, 8]


def test_alpha_is_laid_on_white():
    whole = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    for alpha in (0, 100, 255):
        image = Image.fromarray(np.concatenate([whole, np.full((5, 6, 1), alpha, np.uint8)], -1))
        expected = (whole * (alpha / 255) + 255 - alpha).round()
        data = encoded(image, "PNG")
        assert np.abs(pixels(data) - expected).max() <= 1
        assert (pixels(data) == whole).all() == (alpha == 255)
        assert counted(data).adjusted == ({"alpha": 1} if alpha < 255 else {})
        grey = image.convert("LA")
        assert np.abs(pixels(encoded(grey, "PNG")) - np.asarray(to_rgb(grey), int)).max() == 0
        for mode in ("RGBa", "La"):
            there = np.asarray(to_rgb(image.convert("RGBA" if mode == "RGBa" else "LA").convert(mode)), int)
            wanted = np.asarray(to_rgb(image if mode == "RGBa" else grey), int)
            assert np.abs(there - wanted).max() <= 3
    assert counted(encoded(image, "WEBP", lossless=True)).adjusted == {}


def test_hidden_pixels_do_not_appear():
    secret = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    for form, settings in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert (pixels(encoded(secret, form, **settings)) == 255).all()


def test_a_transparent_colour():
    key = struct.pack(">H", 1)
    assert row(png(8, 1, 1, 0, [b"\x55"], chunk(b"tRNS", struct.pack(">H", 0)))) == [255] * 8
    assert row(png(4, 1, 2, 0, [b"\x1b"], chunk(b"tRNS", key))) == [0, 255, 170, 255]
    assert row(png(2, 1, 4, 0, [b"\x12"], chunk(b"tRNS", key))) == [255, 34]
    assert row(png(2, 1, 8, 0, [b"\x01\x02"], chunk(b"tRNS", key))) == [255, 2]
    assert row(png(2, 1, 16, 0, [b"\x00\x01\x40\x00"], chunk(b"tRNS", key))) == [255, 64]
    colour = png(2, 1, 8, 2, [b"\x01\x02\x03\x01\x02\x04"], chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    assert pixels(colour)[0].tolist() == [[255] * 3, [1, 2, 4]]
    assert counted(colour).adjusted == {"alpha": 1}
    deep = struct.pack(">6H", 0x1000, 0x2000, 0x3000, 0x1100, 0x2000, 0x3000)
    found = pixels(png(2, 1, 16, 2, [deep], chunk(b"tRNS", struct.pack(">HHH", 0x1000, 0x2000, 0x3000))))
    assert found[0].tolist() == [[255] * 3, [0x11, 0x20, 0x30]]


def test_transparent_palettes():
    palette = chunk(b"PLTE", bytes((10, 20, 30, 40, 50, 60, 0, 0, 0)))
    found = pixels(png(3, 1, 8, 3, [b"\0\1\2"], palette + chunk(b"tRNS", bytes((255, 0, 128)))))
    assert found[0].tolist() == [[10, 20, 30], [255] * 3, [127] * 3]
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "GIF"))[0].tolist() == [[200, 0, 0], [0, 0, 200]]
    assert pixels(encoded(image, "GIF", transparency=1))[0].tolist() == [[200, 0, 0], [255] * 3]
    image.putalpha(0)
    assert image.mode == "PA"
    assert (np.asarray(to_rgb(image)) == 255).all()


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}  # EXIF 2.3, table 4.6.4: what the 0th row and the 0th column are


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF of strips", "AVIF", "PNG, at the end"])
def test_images_are_turned_upright(form, turn):
    stored = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3, 1) * 40, np.ones((8, 8, 3), np.uint8))
    image = Image.fromarray(stored)
    if form == "PNG, at the end":
        rows = [line.tobytes() for line in stored]
        data = png(24, 16, 8, 2, rows, after=chunk(b"eXIf", exif(turn)[6:]))
    elif form.startswith("TIFF"):
        settings = {"compression": "tiff_lzw"} if form == "TIFF" else {}
        data = encoded(image, "TIFF", tiffinfo={274: turn}, **settings)
    elif form == "AVIF" and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    else:
        data = encoded(image, form, exif=exif(turn), quality=95)
    right = UPRIGHT[turn](stored)
    found = pixels(data)
    assert found.shape == right.shape
    assert np.abs(found.astype(int) - right).max() < 25
    stats = counted(data)
    assert stats.image_size == right.shape[:2]
    assert stats.adjusted == ({"orientation": 1} if turn > 1 else {})
    if form != "PNG, at the end":
        with open_image(data) as opened:
            assert upright_size(opened) == right.shape[:2]
    if not form.startswith("TIFF"):
        assert pixels(data, upright=False).shape == stored.shape


def test_damaged_exif_counts_as_none():
    for block in (b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", exif(6)[:-10], exif(9), exif(0), b"MM\0*" * 9):
        assert orientation(block) == 1
    assert orientation(b"Exif\0\0" + exif(6)) == 6
    assert orientation(b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, 8, 0)) == 8


def test_the_first_of_several_frames():
    frames = [Image.new("RGB", (9, 7), (60 * i, 0, 0)) for i in range(4)]
    for form in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        assert pixels(data).max() < 8
        assert counted(data).adjusted == {"frames": 1}
        assert counted(encoded(frames[0], "JPEG" if form == "MPO" else form)).adjusted == {}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt", b"iCCP"])
def test_a_png_with_large_metadata_is_whole(kind, place):
    packed = zlib.compress(b"a" * (8 << 20))
    data = {
        b"zTXt": b"k\0\0" + packed,
        b"iTXt": b"k\0\1\0\0\0" + packed,
        b"tEXt": b"k\0" + b"a" * (8 << 20),
        b"iCCP": b"k\0\0" + packed,
    }[kind]
    data = png(2, 1, 8, 0, [b"\x05\x06"], **{place: chunk(kind, data)})
    assert row(data) == [5, 6]
    assert counted(data).count == 1


def test_a_png_keeps_what_its_pixels_need():
    note = PngInfo()
    note.add_text("k", "a" * (2 << 20), zip=True)
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    data = encoded(image, "PNG", pnginfo=note, transparency=0, exif=exif(6))
    assert pixels(data).tolist() == [[[255] * 3], [[255] * 3]]


def test_more_pixels_than_are_allowed():
    big = png(30_000, 30_000, 8, 0, [b""])
    assert "30,000 x 30,000 pixels, more than the 178,956,970 that are allowed; decode(max_pixels=...)" in refused(big)
    small = encoded(Image.new("L", (30, 20)), "PNG")
    with pytest.raises(ImageRefused, match="30 x 20 pixels, more than the 599"):
        open_image(small, 599)
    assert read_image(small, "it", max_pixels=600).shape == (3, 20, 30)
    sample = {"__key__": "k", "png": small, "cls": b"0"}
    with pytest.raises(UserError, match="more than the 599 that are allowed"):
        next(decode(max_pixels=599)(iter([sample])))
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xff\xff\xff" * 2
    assert "16,777,216 x 16,777,216" in refused(b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas)
    assert "100,000 x 100,000" in refused(tiff({256: 100_000, 257: 100_000}, b"\0"))
    assert "65,536 x 65,536" in refused(tiff({322: 65_536, 323: 65_536}, b"\0"))
    assert "65,535 x 65,535" in refused(b"GIF89a" + b"\xff" * 4 + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;")


def test_no_warning_below_the_bound(recwarn):
    with open_image(png(10_000, 10_000, 8, 0, [b""])) as image:
        assert image.size == (10_000, 10_000)
    assert not list(recwarn)


def test_tags_that_refer_to_the_whole_file_again_and_again():
    entries = {700 + i: 0 for i in range(500)}
    data = bytearray(tiff(entries, bytes(200_000)))
    first = struct.unpack_from("<I", data, 4)[0] + 2
    for i in range(8, 500):  # each: 200,000 bytes from the beginning
        if struct.unpack_from("<H", data, first + 12 * i)[0] >= 700:
            struct.pack_into("<HII", data, first + 12 * i + 2, 7, 200_000, 0)
    assert "more bytes than it has" in refused(bytes(data))


def test_a_progressive_jpeg_of_very_many_scans():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).resize((4000, 4000))
    data = encoded(image, "JPEG", progressive=True, quality=20)
    assert pixels(data).shape == (4000, 4000, 3)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert "scans, made to take long" in refused(data[:-2] + scan * 300 + data[-2:])
    tiny = encoded(image.resize((16, 16)), "JPEG", progressive=True)
    scan = tiny[tiny.rindex(b"\xff\xda") : -2]
    assert pixels(tiny[:-2] + scan * 20 + tiny[-2:]).shape == (16, 16, 3)  # many, but soon done


def test_a_gif_of_thousands_of_frames_is_read_no_further_than_its_second():
    one = encoded(Image.new("L", (8, 8), 7), "GIF")
    frame = one[one.index(b",") : -1]
    data = one[:-1] + frame * 20_000 + b";"

    with open_image(data) as image:
        seen: list[str] = []
        to_rgb(image, seen=seen)
        assert seen == ["frames"]
        assert image.fp.tell() < 100_000 < len(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "an empty file (0 bytes)"),
        (bytes(5000), "nothing but zero bytes"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photograph: convert it to JPEG or PNG first"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "a HEIC photograph"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "RAW file (CR3): convert"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "a video"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "RAW file (CR2): convert"),
        (b"8BPS\0\1" + bytes(20), "a Photoshop file (PSD): convert"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b'<?xml version="1.0"?>\n<svg width="3"/>', "an SVG drawing: convert"),
        (b"\n<!DOCTYPE html><html>", "a web page (HTML; a download that failed?)"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"\xff\x0a\xfa\x7f\x01", "a JPEG XL image: convert"),
        (b"PK\x03\x04" + bytes(30), "a zip archive"),
        (b"404: Not Found", "text that begins with '404: Not Found'"),
        (b"\x8a\x91\x00" * 9, "no image, or one whose beginning is damaged"),
        (b"P", "text that begins with 'P'"),
    ],
)
def test_what_is_no_image_is_named(data, expected):
    assert expected in refused(data)


def test_a_preview_is_not_taken_for_the_photograph():
    raw = {254: 1, 256: 2, 257: 2, 258: (8, 8, 8), 262: 2, 277: 3}
    assert "RAW file (its first picture is a small preview)" in refused(tiff(raw, bytes(12)))
    assert "RAW file (DNG)" in refused(tiff({**raw, 254: 0, 50706: 0x0401}, bytes(12)))
    assert pixels(tiff({**raw, 254: 0}, bytes(12))).shape == (2, 2, 3)


def test_damaged_files_are_called_damaged():
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)), "JPEG")
    for data in (whole[: len(whole) // 2], whole[:30], encoded(Image.new("L", (9, 9)), "PNG")[:30]):
        with pytest.raises(UserError, match=r"decode it .*: the shard is damaged or was made from a broken file"):
            read_image(data, "it")
