"""The members of a tar: what tarfile finds in whole archives, one line for every damaged one, and always an end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdstream.errors import UserError
from kdstream.stream.index import Scanned, scan_shard
from kdstream.stream.tar_members import BLOCK, Member, members

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def read(path: Path, data: bytes | None = None) -> list[Member]:
    if data is not None:
        path.write_bytes(data)
    file = os.open(path, os.O_RDONLY)
    try:
        return list(members(path, file, os.fstat(file).st_size))
    finally:
        os.close(file)


def refusal(path: Path, data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        read(path, data)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def header(name: str, size: int | bytes, kind: bytes = b"0", **fields) -> bytes:
    """One header block; a size in bytes stands in its field as it is."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


END = bytes(2 * BLOCK)
GOOD = header("a.png", 3) + padded(b"abc") + header("a.cls", 1) + padded(b"1")

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
raw = st.binary(min_size=1, max_size=12).map(lambda b: b.replace(b"\0", b"x").decode("utf-8", "surrogateescape"))
long = st.builds(lambda part, n: "/".join([part.replace("/", "_")] * n), texts, st.integers(8, 40))
names = st.one_of(st.sampled_from(["./a.png", "/a/b.JPG", "..\\x.cls", "a b/.hid.den", "ü.png"]), texts, raw, long)
kinds = st.sampled_from([tarfile.REGTYPE] * 4 + [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])


@given(
    st.sampled_from(FORMATS),
    st.lists(
        st.tuples(names, kinds, st.integers(0, 1500), names, st.floats(0, 2e9), st.integers(0, 1 << 40)), max_size=6
    ),
    st.dictionaries(st.sampled_from(["comment", "SCHILY.xattr.user.x"]), texts, max_size=2),
)
@settings(max_examples=150)
def test_what_tarfile_writes_is_read_as_tarfile_reads_it(tmp_path_factory, form, wanted, everywhere):
    path = tmp_path_factory.mktemp("tar") / "0.tar"
    with tarfile.open(
        path, "w", format=form, pax_headers=everywhere, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        tar.addfile(tarfile.TarInfo("first"))  # tarfile itself cannot open a global header without a member
        for name, kind, size, target, mtime, uid in wanted:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else ""
            info.mtime, info.uid = (mtime, uid) if form == tarfile.PAX_FORMAT else (int(mtime), uid % 1000)
            if kind == tarfile.REGTYPE:
                info.size = size
            try:
                tar.addfile(info, io.BytesIO(bytes(size)))
            except ValueError:  # too long for this format
                continue
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as tar:
        expected = [
            (m.name, m.type, m.offset_data, m.size if m.isreg() else 0, m.linkname if m.issym() or m.islnk() else "")
            for m in tar.getmembers()
        ]
    assert [member[:5] for member in read(path)] == expected


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_more_than_8_gb(tmp_path, form):
    """Sizes that octal digits cannot hold: base 256, or a record of the pax header. The file has a hole in it."""
    info, size = tarfile.TarInfo("large.bin"), 9 << 30
    info.size = size
    first = info.tobuf(form)
    with open(tmp_path / "0.tar", "wb") as file:
        file.write(first)
        file.seek(size, os.SEEK_CUR)
        file.write(GOOD + END)
    found = read(tmp_path / "0.tar")
    assert [(m.name, m.size) for m in found] == [("large.bin", size), ("a.png", 3), ("a.cls", 1)]
    assert found[0].offset == len(first)


def test_archives_joined_end_to_end(tmp_path):
    found = read(tmp_path / "0.tar", GOOD + END + bytes(5 * BLOCK) + GOOD + END + END)
    assert [(m.name, m.archive) for m in found] == [("a.png", 0), ("a.cls", 0), ("a.png", 1), ("a.cls", 1)]
    assert [m.name for m in read(tmp_path / "0.tar", GOOD + bytes(BLOCK))] == ["a.png", "a.cls"]
    for tail in (b"rubbish", b"rubbish" * 500, GOOD[3:]):
        assert f"truncate -s {len(GOOD + END)}" in refusal(tmp_path / "0.tar", GOOD + END + tail)
    assert "is truncated" in refusal(tmp_path / "0.tar", GOOD + END + GOOD[: 2 * BLOCK])
    assert "no tar header at byte" in refusal(tmp_path / "0.tar", GOOD + END + GOOD + b"x" * BLOCK)


def test_old_headers(tmp_path):
    """Without a magic; with a checksum of signed bytes; with times where POSIX keeps the beginning of the name."""
    old = bytearray(header("caf\xe9.png", 3))
    old[257:265] = bytes(8)
    old[148:156] = b" " * 8
    total = sum(old) - 256 * sum(byte > 127 for byte in old)
    old[148:156] = b"%06o\0 " % total
    times = bytearray(header("b.png", 0))
    times[345:357] = b"14771234567\0"
    times[148:156] = b" " * 8
    times[148:156] = b"%06o\0 " % sum(times)
    found = read(tmp_path / "0.tar", bytes(old) + padded(b"abc") + bytes(times) + header("d/", 0, b"\0") + END)
    assert [(m.name, m.type) for m in found] == [("caf\xe9.png", b"0"), ("b.png", b"0"), ("d", b"5")]


NEGATIVE = (-512).to_bytes(12, "big", signed=True)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (GOOD + header("README", NEGATIVE) + END, "a member of -512 bytes"),
        (GOOD + header("d", NEGATIVE, b"5") + END, "a member of -512 bytes"),
        (GOOD + header("l", NEGATIVE, b"L") + END, "a member of -512 bytes"),
        (GOOD + header("b.png", b"\x80" + b"\xff" * 11) + END, "'b.png' runs past its end"),
        (GOOD + header("b.png", b"-0000000777\0") + END, "no tar header at byte"),
        (GOOD + header("b.png", b"0x000000010\0") + END, "no tar header at byte"),
        (GOOD + header("l", b"77777777777\0", b"L") + END, "a long name of 8,589,934,591 bytes"),
        (GOOD + header("l", b"77777777777\0", b"K") + END, "a long link target of 8,589,934,591 bytes"),
        (GOOD + header("p", b"\x80\0\0\0\x80" + bytes(7), b"x") + END, "a pax header of"),
        (GOOD + header("p", 1 << 20, b"g") + END, "runs past its end"),
        (GOOD + header("p", 12, b"x") + padded(b"99999 path=a") + GOOD + END, "a broken record"),
        (GOOD + header("p", 9, b"x") + padded(b"0 path=a\n") + GOOD + END, "a broken record"),
        (GOOD + header("p", 9, b"x") + padded(b"path=abc\n") + GOOD + END, "a broken record"),
        (GOOD + header("p", 12, b"x") + padded(b"12 size=\xb2-1\n") + GOOD + END, "whose size is no number"),
        (GOOD + header("p", 11, b"x") + padded(b"11 size=-1\n") + GOOD + END, "whose size is no number"),
        (GOOD + header("p", 11, b"x") + padded(b"11 path=ab\n") + END, "an extended header without its member"),
        (GOOD + header("l", 3, b"L") + padded(b"abc"), "is truncated"),
        (GOOD + header("s", 0, b"S") + END, None),
        (b"", "is empty"),
        (b"hello", "no tar file or truncated"),
        (b"\xff" * 5000, "no tar file or damaged"),
    ],
)
def test_damaged_headers_are_one_line(tmp_path, data, expected):
    if expected is None:
        assert len(read(tmp_path / "0.tar", data)) == 3
    else:
        assert expected in refusal(tmp_path / "0.tar", data)


def test_a_pax_header_of_a_megabyte(tmp_path):
    """Of digits only, which a careless pattern goes through a trillion times; and of many records."""
    size = 1 << 20
    assert "broken record" in refusal(tmp_path / "0.tar", header("p", size, b"x") + b"1" * size + GOOD + END)
    records = b"6 a=b\n" * (size // 6)
    data = header("p", len(records), b"x") + padded(records) + GOOD + END
    assert len(read(tmp_path / "0.tar", data)) == 2


@pytest.mark.parametrize(
    ("packed", "name"),
    [
        (gzip.compress(GOOD, mtime=0), "gzip"),
        (bz2.compress(GOOD), "bzip2"),
        (lzma.compress(GOOD), "xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "zstd"),
        (b"PK\3\4" + bytes(600), "zip"),
    ],
)
def test_compressed_files_are_named(tmp_path, packed, name):
    assert f"is compressed ({name}): unpack it with" in refusal(tmp_path / "0.tar", packed)


def test_a_name_like_a_compressed_file_is_a_name(tmp_path):
    assert read(tmp_path / "0.tar", header("BZh9.png", 0) + END)[0].name == "BZh9.png"


def samples_or_message(path: Path) -> list[Scanned] | str:
    try:
        return scan_shard(path).samples
    except UserError as error:
        return str(error)


def test_two_thousand_damaged_tars(tmp_path, monkeypatch):
    """Any bytes changed: either samples that lie inside of the file, or a UserError. Reading goes forward only."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for i, name in enumerate(("a", "b" * 120, "ü", "c")):
            for extension, data in (("png", b"p" * 700), ("cls", b"%d" % i), ("json", b"{}")):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                if name == "c":
                    info.type, info.linkname, info.size = tarfile.LNKTYPE, f"a.{extension}", 0
                tar.addfile(info, io.BytesIO(data))
    whole, path, rng = buffer.getvalue(), tmp_path / "0.tar", random.Random(0)
    end, calls, real = len(whole.rstrip(b"\0")), [0], os.pread

    def counting(*arguments):
        calls[0] += 1
        assert calls[0] < 4 * len(whole) // BLOCK, "it goes round and round"
        return real(*arguments)

    path.write_bytes(whole)
    monkeypatch.setattr(os, "pread", counting)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            place = rng.randrange(end)
            if rng.random() < 0.7:  # in a header, whose checksum is then mended so that the change is looked at
                place = place // BLOCK * BLOCK + rng.choice((rng.randrange(BLOCK), rng.randrange(124, 136), 156))
            damaged[place] = rng.choice((0, 0x80, 0xFF, rng.randrange(256), ord(rng.choice("01257LKxgS"))))
            block = damaged[place // BLOCK * BLOCK :][:BLOCK]
            if rng.random() < 0.9 and whole[place // BLOCK * BLOCK :][257:262] == b"ustar":
                block[148:156] = b" " * 8
                at = place // BLOCK * BLOCK + 148
                damaged[at : at + 8] = b"%06o\0 " % sum(block)
        with open(path, "r+b") as file:  # in place, which is faster than a new file
            file.write(damaged)
        calls[0] = 0
        found = samples_or_message(path)
        if isinstance(found, str):
            assert "\n" not in found
            refused += 1
            continue
        for sample in found:
            assert 0 <= sample.label <= 999999
            for _, offset, size in sample.members:
                assert offset >= BLOCK
                assert size >= 0
                assert offset + size <= len(damaged)
    assert 500 < refused < 2000
