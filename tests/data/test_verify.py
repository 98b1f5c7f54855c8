"""verify: one changed bit is found, also in sets of others."""

from __future__ import annotations

from tars import JPG, image_bytes, message, write_tar

from kdstream.data import checksums as checksums_module
from kdstream.data.shards import open_shards
from kdstream.data.verify import verify


def test_verify_finds_a_changed_bit(copy):
    found = verify(copy)
    assert (found.splits, found.shards, found.samples) == (2, 6, 42)
    assert found.bytes == sum(path.stat().st_size for path in copy.glob("*.tar"))
    for name in ("train-000002.tar", "val-000000.tar"):
        data = bytearray((copy / name).read_bytes())
        data[700] ^= 4
        (copy / name).write_bytes(data)
    text = message(copy, verify)
    assert "train-000002.tar is damaged: its checksum differs (and 1 more of 6 shards)" in text


def test_verify_reads_foreign_sets_too(tmp_path, monkeypatch):
    members = [(f"{i}.{e}", d) for i in range(4) for e, d in (("jpg", image_bytes(i)), ("cls", b"1"))]
    for split in ("train", "val"):
        write_tar(tmp_path / "a" / split / "0.tar", members)
        write_tar(tmp_path / "b" / f"x-{split}-0.tar", members)
    for folder in ("a", "b"):
        found = verify(tmp_path / folder)
        assert (found.splits, found.shards, found.samples, found.decoded) == (2, 2, 8, 8)
    assert verify(tmp_path / "a" / "val").samples == 4
    with monkeypatch.context() as patch:  # bits that change by themselves leave no trace in a file's times
        patch.setattr(checksums_module, "file_sha256", lambda path, *rest: "0" * 64)
        assert "0.tar is damaged: its checksum differs (and 1 more of 2 shards)" in message(tmp_path / "a", verify)
    assert verify(tmp_path / "a").samples == 8
    broken = [
        ("a.jpg", JPG[:100]),
        ("a.cls", b"1"),
        ("b.png", b"hello"),
        ("b.cls", b"1"),
        ("c.jpg", JPG),
        ("c.cls", b"0"),
    ]
    write_tar(tmp_path / "c" / "0.tar", broken)
    assert len(open_shards(tmp_path / "c")) == 3
    text = message(tmp_path / "c", verify)
    assert "2 of the 3 images" in text
    assert "sample 'a'" in text
    assert "no shards at" in message(tmp_path / "a" / "test", verify)
