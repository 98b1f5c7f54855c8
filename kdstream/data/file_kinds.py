"""What a file is that cannot be read as an image: named by its first bytes and by its name, so that a message helps."""

from __future__ import annotations

import os
import struct

HEAD = 1024
"""So many first bytes are enough to name a file."""

# fmt: off
_RAW = (
    "cr2", "cr3", "crw", "nef", "nrw", "arw", "srf", "sr2", "dng", "orf", "raf", "rw2", "pef", "srw", "x3f", "mrw",
    "erf", "kdc", "dcr", "mos", "iiq", "3fr", "rwl", "raw",
)
_VIDEO = ("mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "wmv", "flv", "3gp", "mts", "m2ts")
# fmt: on
_NAMED = {
    **{extension: f"a camera's RAW file ({extension.upper()})" for extension in _RAW},
    **dict.fromkeys(_VIDEO, "a video"),
    **dict.fromkeys(("heic", "heif", "heics", "hif"), "a HEIC photograph"),
    "jxl": "a JPEG XL image",
    "psd": "a Photoshop file (PSD)",
    "psb": "a Photoshop file (PSB)",
    "xcf": "a GIMP file (XCF)",
    "ai": "an Illustrator file",
    "eps": "a PostScript file (EPS)",
    "svg": "an SVG drawing",
    "svgz": "an SVG drawing",
    "pdf": "a PDF document",
    "exr": "an OpenEXR image",
    "hdr": "a Radiance HDR image",
    "ico": "an icon (ICO)",
    "icns": "an icon (ICNS)",
    "tga": "a TGA image",
    "dds": "a DDS texture",
    "dcm": "a DICOM image",
}
_UNFINISHED = ("crdownload", "part", "partial", "download", "opdownload")
_ALIASES = ("jpeg2000", "j2k", "j2c", "jpc", "jpx", "jpf", "mpo", "pjpeg", "pjp", "apng", "dib", "pfm", "avifs")

_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"heif"), "heic"),
    **dict.fromkeys((b"avif", b"avis"), "avif"),
    b"crx ": "cr3",
}
_MAGIC = (
    (0, b"8BPS", _NAMED["psd"]),
    (0, b"%PDF", _NAMED["pdf"]),
    (0, b"%!PS", _NAMED["eps"]),
    (0, b"\xc5\xd0\xd3\xc6", _NAMED["eps"]),
    (0, b"gimp xcf", _NAMED["xcf"]),
    (0, b"\xff\x0a", _NAMED["jxl"]),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", _NAMED["jxl"]),
    (0, b"v/1\x01", _NAMED["exr"]),
    (0, b"#?RADIANCE", _NAMED["hdr"]),
    (0, b"#?RGBE", _NAMED["hdr"]),
    (0, b"\x00\x00\x01\x00", _NAMED["ico"]),
    (0, b"icns", _NAMED["icns"]),
    (0, b"DDS ", _NAMED["dds"]),
    (128, b"DICM", _NAMED["dcm"]),
    (0, b"FUJIFILMCCD-RAW", _NAMED["raf"]),
    (0, b"IIRO", _NAMED["orf"]),
    (0, b"IIRS", _NAMED["orf"]),
    (0, b"MMOR", _NAMED["orf"]),
    (0, b"IIU\x00", _NAMED["rw2"]),
    (0, b"FOVb", _NAMED["x3f"]),
    (0, b"\x00MRM", _NAMED["mrw"]),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (8, b"AVI ", "a video"),
    (0, b"FLV", "a video"),
    (0, b"\x00\x00\x01\xba", "a video"),
    (0, b"\x00\x00\x01\xb3", "a video"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"SIMPLE  =", "a FITS image"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself (git lfs pull fetches it)"),
    (0, b"/annex/objects/", "a pointer of git-annex, not the file itself (git annex get fetches it)"),
)


def kind_of(head: bytes) -> str:
    """Name the contents of a file that is no image of the formats that are read.

    Args:
        head: the first bytes, :data:`HEAD` or more.

    Returns:
        what it is, to be put after "it is": ``a HEIC photograph``, ``an empty file (0 bytes)``, ...
    """
    if not head:
        return "an empty file (0 bytes)"
    head = head[:HEAD]
    if head[4:8] == b"ftyp":
        kind = _BRANDS.get(head[8:12]) or ("heic" if b"mif1" in head[16:64] or b"heic" in head[16:64] else "mp4")
        return "an AVIF image, which this Pillow cannot read" if kind == "avif" else _NAMED[kind]
    for offset, magic, name in _MAGIC:
        if head.startswith(magic, offset):
            return name
    if not head.strip(b"\0"):
        return "nothing but zero bytes (an unfinished download or copy?)"
    lower = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in lower and lower.startswith(b"<"):
        return _NAMED["svg"]
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML; a download that failed?)"
    text = _text(head)
    return f"text that begins with {text[:24].strip()!r}" if text else "no image, or one whose beginning is damaged"


def _text(head: bytes) -> str:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # more than a character that is cut at the end
            return ""
        text = head[: error.start].decode("utf-8")
    return text if all(character.isprintable() or character in "\t\r\n" for character in text) else ""


def is_photograph(name: str) -> bool:
    """Whether a file's name says that it is a picture, though in none of the usual formats."""
    stem, extension = _split(name)
    if extension in _UNFINISHED:
        return "." in stem
    return extension in _NAMED or extension in _ALIASES


def refusal(name: str, head: bytes) -> str | None:
    """Why a file cannot be an image, as far as its name and beginning tell; None where it may be one.

    The name counts where the contents alone would deceive: a camera's RAW file opens as a TIFF of its small preview,
    and an unfinished download has an image's beginning.
    """
    _, extension = _split(name)
    if not head:
        return kind_of(head)
    if extension in _UNFINISHED:
        return f"an unfinished download (.{extension})"
    if extension in _RAW and head[:4] in (b"II*\0", b"MM\0*"):
        return _NAMED[extension]
    if head[:4] in (b"II*\0", b"MM\0*") and head[8:10] == b"CR":
        return _NAMED["cr2"]
    return None


def _split(name: str) -> tuple[str, str]:
    stem, extension = os.path.splitext(os.path.basename(name))
    return stem, extension[1:].lower()


def tiff_tags(block: bytes) -> tuple[dict[int, int], int]:
    """The first directory of a TIFF file or of an EXIF block, without following anything.

    Returns:
        the first value of each tag of one of the integer types that is stored in the entry itself, and the bytes that
        all entries together refer to elsewhere. Empty, 0 for anything that has no such directory.
    """
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    tags: dict[int, int] = {}
    total = 0
    if order is None:
        return tags, total
    try:
        (version,) = struct.unpack_from(f"{order}H", block, 2)
        big = version == 43  # BigTIFF: wider fields
        (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", block, 8 if big else 4)
        (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", block, start)
        entry = f"{order}HH{'Q' if big else 'I'}"
        step, room = (20, 8) if big else (12, 4)
        first = start + (8 if big else 2)
        for position in range(first, min(first + step * count, len(block) - step + 1), step):
            tag, kind, length = struct.unpack_from(entry, block, position)
            size = length * _SIZES.get(kind, 1)
            if size > room:
                total += size
            elif kind in _CODES and length:
                (tags[tag],) = struct.unpack_from(f"{order}{_CODES[kind]}", block, position + step - room)
    except struct.error:  # cut off: what was found until then
        pass
    return tags, total


_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
