"""Opening image files and turning them into 8-bit RGB: raster formats only, one meaning for training and statistics."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import Image

from kdstream.data.file_kinds import HEAD, kind_of, refusal, tiff_tags

EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "PPM": "ppm",
    "TIFF": "tif",
    "GIF": "gif",
    "JPEG2000": "jp2",
    "AVIF": "avif",
}
"""Pillow's names of the formats that are read -> the usual extension."""
# Pillow goes by content, not by name, and hands PostScript to an interpreter, a program that runs what it reads.

MAX_PIXELS = 178_956_970
"""Greater images are refused unless asked for: a small file may claim any size. Pillow's own limit; about 1.5 GB of
memory while such an image is decoded."""
SCANS = 16
"""A progressive JPEG of so many scans is decoded at any size; each scan costs time for every pixel."""

ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageRefused(ValueError):
    """A file that is not read, though it may be whole: no image, a foreign format, too large, or without a meaning in
    8-bit RGB. The message goes after "it is" or "it has"; it says what to do."""


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image, not yet decoded; a context manager.

    Args:
        data: the file's bytes: JPEG, PNG, WebP, BMP, PPM, TIFF, GIF, JPEG 2000 or AVIF, as far as this Pillow has them.
        max_pixels: the most that width x height may be.

    Raises:
        ImageRefused: none of these; more pixels; other claims out of all proportion to the file.
        OSError, ValueError, SyntaxError, EOFError: a damaged file; also when the pixels are read.
    """
    name = format_of(data)
    if name == "PNG":
        data = _without_metadata(data)
    elif name == "TIFF":
        _check_tiff(data, max_pixels)
    elif name == "WEBP" and data[12:16] == b"VP8X":  # Pillow makes room for the canvas at once
        size = [int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27)]
        _check_size(size[0], size[1], max_pixels)
    elif name == "JPEG" and len(data) > 1 << 16 and data.count(b"Exif\0\0") > 1:
        _check_exif(data)
    try:
        # Not Image.open, which knows one limit for all, warns below it, and tries every format in turn.
        image = Image.OPEN[name][0](io.BytesIO(data), "")
    except (SyntaxError, IndexError, TypeError, KeyError, struct.error) as error:
        raise OSError(f"damaged {name} header ({error})") from error
    _check_size(*image.size, max_pixels)
    if "progressive" in image.info:
        scans = data.count(b"\xff\xda")  # at least as many as there are
        if scans > SCANS and scans * image.width * image.height > SCANS * MAX_PIXELS:
            raise ImageRefused(f"a JPEG of {scans:,} scans, made to take long: save it anew, without that")
    return image


def format_of(data: bytes) -> str:
    """Pillow's name of the format that a file's first bytes are of.

    Raises:
        ImageRefused: none that is read.
    """
    if "AVIF" not in Image.OPEN:
        Image.init()
    prefix = data[:16]
    for name in EXTENSIONS:
        accept = Image.OPEN[name][1] if name in Image.OPEN else None
        try:
            accepted = accept is not None and accept(prefix)
        except (IndexError, struct.error):  # fewer bytes than a format's mark has
            continue
        if accepted:
            if isinstance(accepted, str):
                raise ImageRefused(f"a {name} image, which this Pillow cannot read ({accepted})")
            if name == "AVIF" and not any(brand in data[8:64] for brand in (b"avif", b"avis")):
                break  # HEIC shares a mark with it
            return name
    kind = kind_of(data[:HEAD])
    raise ImageRefused(f"{kind}: convert it to JPEG or PNG first" if _convertible(kind) else kind)


def _convertible(kind: str) -> bool:
    return any(word in kind for word in ("photograph", "RAW", "image,", "(PSD)", "(XCF)", "drawing", "XL", "OpenEXR"))


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageRefused(f"an image of {width:,} x {height:,} pixels, more than the {max_pixels:,} that are allowed")


def _check_tiff(data: bytes, max_pixels: int) -> None:
    if reason := refusal("", data[:HEAD]):
        raise ImageRefused(f"{reason}: convert it to JPEG or PNG first")
    tags, elsewhere = tiff_tags(data)
    if elsewhere > 2 * len(data):
        raise ImageRefused("a TIFF whose tags refer to more bytes than it has: damaged, or made to fill the memory")
    if 50706 in tags or tags.get(254, 0) & 1:
        raise ImageRefused(
            "a camera's RAW file (its first picture is a small preview): convert it to JPEG or PNG first"
            if 50706 not in tags
            else "a camera's RAW file (DNG): convert it to JPEG or PNG first"
        )
    _check_size(tags.get(256, 1), tags.get(257, 1), max_pixels)
    _check_size(tags.get(322, 1), tags.get(323, 1), max_pixels)  # tiles, which may be larger than the image


def _check_exif(data: bytes) -> None:
    """Pillow joins the EXIF segments of a JPEG and reads all that their first directory refers to."""
    first = data.index(b"Exif\0\0") + 6
    if tiff_tags(data[first : first + (1 << 20)])[1] > 2 * len(data):
        raise ImageRefused("a JPEG whose EXIF refers to more bytes than it has: damaged, or made to fill the memory")


_METADATA = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}


def _without_metadata(data: bytes) -> bytes:
    """A PNG without texts and colour profiles: Pillow unpacks them to throw them away, and refuses long ones."""
    kept, begin, position, end = [], 0, 8, len(data)
    while position + 8 <= end:
        kind = data[position + 4 : position + 8]
        after = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if kind in _METADATA:
            kept.append(data[begin:position])
            begin = after
        elif kind == b"IEND":
            break
        position = after
    if not kept:
        return data
    kept.append(data[begin:])
    return b"".join(kept)


def to_rgb(image: Image.Image, upright: bool = True, seen: list[str] | None = None) -> Image.Image:
    """The pixels of an image as 8-bit RGB: the one meaning that decoding, statistics and conversion share.

    Grey has three equal channels. 16-bit values lose their lower byte (12-bit TIFF its lower 4 bits); 32-bit integers
    are taken for 16-bit values where they are (0 to 65,535), floats from 0 to 1 are scaled by 256. What is transparent,
    be it by an alpha channel, a palette or a colour that is named transparent, is laid on white. CMYK, YCbCr, LAB and
    palettes are converted as Pillow does. Of several frames the first is taken.

    Args:
        image: as :func:`open_image` gives it; decoded here.
        upright: turn and mirror as the EXIF orientation says. TIFF is always turned: Pillow does so itself.
        seen: gets the names of what was done: "orientation", "alpha", "depth", "frames".

    Returns:
        mode RGB; may be ``image`` itself.

    Raises:
        ImageRefused: values whose range is not known.
        Exception: whatever Pillow raises for pixels that cannot be decoded.
    """
    tags = getattr(image, "tag_v2", None)  # of a TIFF
    key = image.info.get("transparency")
    if key is not None and image.mode in ("L", "RGB"):
        key = _eight_bit_key(image, key)
    if seen is not None:
        if tags is not None and tags.get(ORIENTATION, 1) in _TURNS:
            seen.append("orientation")
        if any(";16" in str(tile) for tile in _tiles(image)):
            seen.append("depth")
    image.load()
    rgb = image
    if image.mode != "RGB" or key is not None:
        rgb = _flat(image, key, seen)
    turn = orientation(image.info["exif"]) if tags is None and "exif" in image.info else 1  # Pillow turns TIFF itself
    if turn != 1 and upright:
        rgb = rgb.transpose(_TURNS[turn])
        if seen is not None:
            seen.append("orientation")
    if seen is not None and _several(image):
        seen.append("frames")
    return rgb


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) that :func:`to_rgb` will give, without decoding."""
    width, height = image.size
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        stored = tags.get(256) == width and tags.get(257) == height  # older Pillows turn the size with the pixels
        turn = tags.get(ORIENTATION, 1) if stored else 1
    else:
        turn = orientation(image.info["exif"]) if "exif" in image.info else 1
    return (width, height) if turn in (5, 6, 7, 8) else (height, width)


def orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, that an EXIF block holds; 1 where it holds none, or is damaged."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    found = tiff_tags(exif)[0].get(ORIENTATION, 1)
    return found if found in _TURNS else 1


def _tiles(image: Image.Image) -> list[Any]:
    """What Pillow notes of a file's parts before it decodes them; an image that comes from no file has none."""
    return getattr(image, "tile", [])


def _several(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame is nobody's business
        return True


def _eight_bit_key(image: Image.Image, key: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """The transparent grey or colour of a PNG in the levels that Pillow gives; before decoding."""
    tiles = _tiles(image)
    raw = str(tiles[0][3]) if tiles else ""
    if isinstance(key, tuple):
        return tuple(value >> 8 for value in key) if ";16" in raw else key
    return key * {"L;2": 85, "L;4": 17}.get(raw, 1)


def _flat(image: Image.Image, key: int | tuple[int, ...] | bytes | None, seen: list[str] | None) -> Image.Image:
    """The decoded image as RGB, without transparency."""
    mode = image.mode
    if mode[0] in "IF":
        if seen is not None and "depth" not in seen:
            seen.append("depth")
        values = np.asarray(image)
        rgb = Image.fromarray(_levels(image, values)).convert("RGB")
        return rgb if key is None else _on_white(rgb, Image.fromarray(_opaque(values == key)), seen)
    if mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    palette = image.palette if mode in ("P", "PA") else None
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        mode == "P" and (key is not None or (palette is not None and palette.mode.endswith("A")))
    ):
        full = image.convert("RGBA")
        return _on_white(full.convert("RGB"), full.getchannel("A"), seen)
    try:
        rgb = image if mode == "RGB" else image.convert("RGB")
    except (ValueError, ImportError) as error:
        raise ImageRefused(f"an image of mode {mode}, which this Pillow cannot turn into RGB ({error})") from error
    if key is None:
        return rgb
    values = np.asarray(rgb)
    if isinstance(key, int):
        key = (255 * bool(key),) * 3 if mode == "1" else (key,) * 3
    return _on_white(rgb, Image.fromarray(_opaque((values == np.asarray(key)).all(-1))), seen)


def _opaque(transparent: np.ndarray) -> np.ndarray:
    return np.where(transparent, np.uint8(0), np.uint8(255))


def _on_white(rgb: Image.Image, alpha: Image.Image, seen: list[str] | None) -> Image.Image:
    if alpha.getextrema()[0] == 255:
        return rgb
    if seen is not None:
        seen.append("alpha")
    white = Image.new("RGB", rgb.size, (255, 255, 255))
    white.paste(rgb, mask=alpha)
    return white


def _levels(image: Image.Image, values: np.ndarray) -> np.ndarray:
    """Grey of more than 8 bits as uint8; see :func:`to_rgb`."""
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(262) == 0  # "white is zero", which Pillow heeds for 8 bits only
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if image.mode[0] == "F":
        if not (low >= 0 and high <= 1):  # nan as well
            raise ImageRefused(
                f"an image of floats from {low:g} to {high:g}, whose range is not known (0 to 1 is): "
                "convert it to 8 or 16 bits first"
            )
        levels = np.minimum(values * 256, 255).astype(np.uint8)
    else:
        wide = image.mode == "I" and getattr(image, "format", None) not in ("PNG", "PPM")
        bits = tags.get(258, (16,))[0] if image.mode != "I" else 16
        if wide and (low < 0 or high > 65535 or 0 < high < 256 or tags.get(258, (32,))[0] < 32):
            raise ImageRefused(
                f"an image of wide integers from {low:,} to {high:,}, whose range is not known: "
                "convert it to 8 or 16 bits first"
            )
        levels = (values >> (bits - 8)).astype(np.uint8)
    return 255 - levels if inverted else levels
