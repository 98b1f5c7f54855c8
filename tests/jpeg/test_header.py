"""header: which files are read in part, and what their headers say."""

from __future__ import annotations

import pytest
from image_bytes import exif
from photographs import jpeg, photograph

from kdstream.jpeg.header import read_header

PHOTO = photograph(21, 34)


@pytest.mark.parametrize(
    ("settings", "luma"), [({"subsampling": 0}, (1, 1)), ({"subsampling": 1}, (2, 1)), ({"subsampling": 2}, (2, 2))]
)
def test_sizes_and_sampling(settings, luma):
    header = read_header(jpeg(PHOTO, **settings, restart_marker_blocks=3, exif=exif(6)))
    assert (header.height, header.width, header.restart) == (21, 34, 3)
    assert header.sampling == (luma, (1, 1), (1, 1))
    assert header.unit == (8 * luma[1], 8 * luma[0])
    assert header.exif == exif(6)


def test_a_grey_image_has_one_component():
    header = read_header(jpeg(PHOTO.convert("L")))
    assert header.sampling == ((1, 1),)
    assert header.restart == 0
    assert header.exif == b""


def test_other_files_are_left_to_others():
    whole = jpeg(PHOTO)
    for other in [
        jpeg(PHOTO, progressive=True),
        jpeg(PHOTO.convert("CMYK")),
        jpeg(PHOTO, keep_rgb=True),
        whole[:100],
        whole.replace(b"\xff\xc0", b"\xff\xc9"),  # arithmetic coding
        whole.replace(b"\xff\xdb", b"\xff\xfe"),  # without quantisation tables
        whole.replace(b"\xff\xc4", b"\xff\xfe"),  # without Huffman tables
        b"",
        b"\x89PNG",
    ]:
        assert read_header(other) is None
    assert read_header(whole) is not None
