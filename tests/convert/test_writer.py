"""Writing a shard: a tar that others read, the same bytes always, with a record of where everything lies in it."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdstream.convert.split import ArraySplit, unique_keys
from kdstream.convert.writer import ShardRecord, write_shard
from kdstream.errors import UserError


def pictures(names: list[str]) -> ArraySplit:
    """Grey images of 4x3 pixels, the i-th of class i, under keys made of the names."""
    pixels = np.random.default_rng(0).integers(0, 256, (len(names), 4, 3), np.uint8)
    return ArraySplit(pixels, unique_keys([name] for name in names), range(len(names)))


class Unreadable(ArraySplit):
    """The second image is none."""

    def load(self, i: int) -> bytes:
        return b"hello" if i == 1 else super().load(i)


@given(names=st.lists(st.text(max_size=120), max_size=4))
def test_others_read_what_was_written_where_the_record_says(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shard")
    images = pictures(names)
    record = write_shard(images, folder / "a.tar", folder / "a.json")
    whole = (folder / "a.tar").read_bytes()
    assert (record.bytes, record.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    with tarfile.open(folder / "a.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}
    assert found == {
        f"{item.key}.{end}": data for item in images for end, data in (("png", item.data), ("cls", b"%d" % item.label))
    }
    for key, label, members in record.samples:
        for extension, offset, size in members:
            assert whole[offset : offset + size] == found[f"{key}.{extension}"]
        assert found[f"{key}.cls"] == b"%d" % label
    assert ShardRecord.load(folder / "a.json").samples == [
        [key, label, [list(member) for member in members]] for key, label, members in record.samples
    ]
    write_shard(images, folder / "b.tar", folder / "b.json")
    assert (folder / "b.tar").read_bytes() == whole
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "a.tar", "b.json", "b.tar"]


def test_an_image_that_cannot_be_read_is_left_out_on_request_only(tmp_path):
    images = Unreadable(pictures(["a", "b", "c"]).images, ["a", "b", "c"], [0, 1, 2])
    with pytest.raises(UserError, match=r"^cannot read image b: it is .*; mend or remove it, or leave such files out"):
        write_shard(images, tmp_path / "x.tar", tmp_path / "x.json")
    assert not list(tmp_path.iterdir())
    ticks: list[None] = []
    record = write_shard(
        images, tmp_path / "x.tar", tmp_path / "x.json", skip_errors=True, tick=lambda: ticks.append(None)
    )
    assert [key for key, _, _ in record.samples] == ["a", "c"]
    assert [file for file, _ in record.skipped] == ["b"]
    assert (record.stats.count, len(ticks)) == (2, 3)


def test_a_shard_that_cannot_be_written_says_where(tmp_path):
    with pytest.raises(UserError, match=r"^cannot write shard .*/no/x\.tar: No such file .*the same command continues"):
        write_shard(pictures(["a"]), Path(tmp_path / "no" / "x.tar"), Path(tmp_path / "no" / "x.json"))
