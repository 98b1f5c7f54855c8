"""What no image is, by its first bytes and its name; and TIFF directories that are cut off or refer elsewhere."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdstream.data.file_kinds import HEAD, is_photograph, kind_of, refusal, tiff_tags


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "an empty file (0 bytes)"),
        (b"\0" * 2000, "nothing but zero bytes (an unfinished download or copy?)"),
        (b"\0\0\0\x18ftypheic\0\0", "a HEIC photograph"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp41", "a video"),
        (b"\0" * 128 + b"DICM", "a DICOM image"),
        (b"\xef\xbb\xbf <?xml version='1.0'?><svg>", "an SVG drawing"),
        (b"<!DOCTYPE html><title>404", "a web page (HTML; a download that failed?)"),
        ("épée: 3".encode(), "text that begins with 'épée: 3'"),
        (b"\x01\x02\xff\xfe" * 9, "no image, or one whose beginning is damaged"),
    ],
)
def test_contents_are_named(head, kind):
    assert kind_of(head) == kind


@given(st.binary(max_size=2 * HEAD))
def test_anything_has_one_name_which_the_first_bytes_alone_decide(data):
    kind = kind_of(data)
    assert kind
    assert kind.isprintable()
    assert kind_of(data[:HEAD]) == kind


def test_names_count_where_contents_would_deceive():
    assert refusal("a/b.nef", b"II*\0" + b"\0" * 20) == "a camera's RAW file (NEF)"
    assert refusal("photo.jpg.part", b"\xff\xd8\xff") == "an unfinished download (.part)"
    assert refusal("scan.tif", b"II*\0\x08\0\0\0\0\0") is None
    assert [name for name in ("a.HEIC", "a.jpg.part", "part", "a.txt", "jxl") if is_photograph(name)] == [
        "a.HEIC",
        "a.jpg.part",
    ]


@given(length=st.integers(0, 200), order=st.sampled_from("<>"))
def test_a_directory_that_is_cut_off_gives_what_was_found_until_then(length, order):
    entries = [(274, 3, 1, struct.pack(f"{order}H", 6) + b"\0\0"), (273, 4, 1000, struct.pack(f"{order}I", 8))]
    block = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    block += b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    assert tiff_tags(block) == ({274: 6}, 4000)
    tags, elsewhere = tiff_tags(block[:length])
    assert tags.items() <= {274: 6}.items()
    assert elsewhere in (0, 4000)
