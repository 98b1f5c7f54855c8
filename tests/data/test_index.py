"""The index: what it finds in tars and behind links, and that a damaged one never gives other samples."""

from __future__ import annotations

import os
import pickle
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import JPG, SYM, image_bytes, link, message, write_links, write_tar
from webdataset.tariterators import base_plus_ext

from kdstream.data import index as index_module
from kdstream.data.index import Index, split_name
from kdstream.data.shards import open_shards
from kdstream.data.verify import verify
from kdstream.errors import UserError


def test_a_lost_index_is_built_anew(copy):
    before = [open_shards(copy / "train").read(i) for i in range(30)]
    old = Index.load(copy / "train.index.npz")
    (copy / "train.index.npz").unlink()
    assert [open_shards(copy / "train").read(i) for i in range(30)] == before
    assert Index.load(copy / "train.index.npz").same_as(old)
    assert verify(copy).samples == 42


@given(st.data())
@settings(max_examples=60)
def test_a_damaged_index_never_gives_other_samples(made, tmp_path_factory, data):
    whole = (made / "train.index.npz").read_bytes()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = damaged[: data.draw(st.sampled_from([len(whole), len(whole) // 2, len(whole) - 7]))]
    path = tmp_path_factory.mktemp("index") / "x.npz"
    path.write_bytes(damaged)
    found = index_or_message(path)
    if isinstance(found, str):
        assert re.fullmatch(rf"index {path}( is damaged|: version).*", found)
    else:
        assert found.same_as(Index.load(made / "train.index.npz"))


def index_or_message(path: Path) -> Index | str:
    try:
        return Index.load(path)
    except UserError as error:
        return str(error)


def test_an_index_that_points_outside_is_refused(copy):
    index = Index.load(copy / "train.index.npz")
    for field, place, value in (("offset", -1, 1 << 40), ("size", 0, -1), ("shard", 0, 7), ("first", 1, 0)):
        changed = Index.load(copy / "train.index.npz")
        values = getattr(changed, field).copy()
        values[place] = value
        setattr(changed, field, values)
        changed.save(copy / "bad.npz")
        with pytest.raises(UserError, match="is damaged"):
            Index.load(copy / "bad.npz")
    index.shard_names[0] = "../elsewhere.tar"
    index.save(copy / "bad.npz")
    with pytest.raises(UserError, match="holds a folder"):
        Index.load(copy / "bad.npz")


class Harmful:
    def __reduce__(self):
        return os.abort, ()


def test_an_index_with_a_pickled_object_is_not_executed(copy):
    np.savez(copy / "train.index.npz", version=np.asarray(1), tag=np.asarray([Harmful()], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"train\.index\.npz is damaged"):
        open_shards(copy / "train")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_within_a_tar_are_read(tmp_path, form):
    one, two, far = image_bytes(1), image_bytes(2), "f" * 130
    write_links(
        tmp_path / "x" / "0.tar",
        [
            ("./a.jpg", one), ("./a.cls", b"3"),
            link("./b.jpg", "./a.jpg"), link("./b.cls", "a.cls"),  # a duplicate, as GNU tar stores it
            link("c.jpg", "b.jpg"), ("c.cls", b"1"),
            ("blobs/" + far, two),
            link("d/1.jpg", f"../blobs/{far}", SYM), link("d/1.cls", "../e.cls", SYM),
            link("e.jpg", "d/1.jpg", SYM), ("e.cls", b"2"),
            link("d/f.jpg", "e.jpg"), ("d/f.cls", b"0"),  # a hard link to a symbolic one, which leads to d/d/1.jpg
            ("a.jpg", two), ("a.cls", b"0"),
        ],
        form,
    )  # fmt: skip
    text = message(tmp_path / "x")
    assert "sample 'd/f' has no image" in text
    assert "'d/f.jpg' is a link to 'd/1.jpg', which is not in this tar" not in text
    assert "'d/f.jpg' is a link to 'e.jpg'" in text


def test_links_give_the_samples_that_unpacking_would_give(tmp_path):
    """Written by GNU tar's rules, read by us and, unpacked, by the file system."""
    one, two = image_bytes(1), image_bytes(2)
    tar = write_links(
        tmp_path / "x" / "0.tar",
        [
            ("a.jpg", one), ("a.cls", b"3"),
            link("b.jpg", "a.jpg"), link("b.cls", "a.cls"),
            link("c.jpg", "b.jpg"), ("c.cls", b"1"),
            ("blobs/two", two),
            link("d/1.jpg", "../blobs/two", SYM), link("d/1.cls", "../e.cls", SYM),
            link("e.jpg", "d/1.jpg", SYM), ("e.cls", b"2"),
            ("z.cls", b"4"), link("z.jpg", "./d/../d/1.jpg", SYM),
        ],
    )  # fmt: skip
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    shards = open_shards(tmp_path / "x")
    assert [shards.key(i) for i in range(len(shards))] == ["a", "b", "c", "d/1", "e", "z"]
    for i in range(len(shards)):
        sample = shards.read(i)
        for extension in ("jpg", "cls"):
            assert sample[extension] == (tmp_path / "unpacked" / f"{sample['__key__']}.{extension}").read_bytes()
        assert shards.labels[i] == int(sample["cls"])
    assert shards.notes == ["files without an extension left out: 1, such as 'blobs/two'"]
    assert pickle.loads(pickle.dumps(shards)).read(4) == shards.read(4)
    assert verify(tmp_path / "x").decoded == 6


def test_links_that_lead_nowhere_are_counted(tmp_path, capsys):
    good = [("a.jpg", JPG), ("a.cls", b"1")]
    lost = [
        link("b.jpg", "/etc/hostname", SYM), link("c.jpg", "../../a.jpg", SYM), link("d.jpg", "d.jpg", SYM),
        link("e.jpg", "f.jpg", SYM), link("f.jpg", "e.jpg", SYM), link("g.jpg", "z.jpg"), link("z.jpg", "no", SYM),
    ]  # fmt: skip
    write_links(tmp_path / "x" / "0.tar", [*good, *lost])
    write_links(tmp_path / "x" / "1.tar", [link("y.jpg", "a.jpg"), link("y.cls", "a.cls"), *good])
    shards = open_shards(tmp_path / "x")
    assert len(shards) == 2
    note = "links left out to files that are not in their tar: 9, such as 'b.jpg -> /etc/hostname'"
    assert shards.notes == [note]
    assert note in capsys.readouterr().err
    assert open_shards(tmp_path / "x").notes == [note]  # also from the stored index
    write_links(tmp_path / "y" / "0.tar", [*good, lost[0], ("b.cls", b"1")])
    assert "'b.jpg' is a link to '/etc/hostname', which is not in this tar" in message(tmp_path / "y")


def test_more_extensions_than_an_index_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "MOST_EXTENSIONS", 10)
    members = [("a.jpg", JPG), ("a.cls", b"1"), *((f"a.{n}", b"") for n in range(8))]
    write_tar(tmp_path / "x" / "0.tar", members)
    assert len(open_shards(tmp_path / "x")) == 1
    write_tar(tmp_path / "x" / "1.tar", [*members, ("a.8", b"")])
    assert "more than 10 different extensions up to 'a.8'" in message(tmp_path / "x")


def test_indices_that_declare_more_than_they_hold(copy, tmp_path):
    """Refused before anything is reserved or unpacked."""
    path = copy / "train.index.npz"
    shard_bytes = sum(shard.stat().st_size for shard in copy.glob("train-*.tar"))
    arrays = dict(np.load(path))
    np.savez_compressed(path, **{**arrays, "label": np.zeros(10_000_000, np.int64)})
    assert "version.npy is compressed" in message(path, Index.load)
    np.savez(path, **{**arrays, "label": np.zeros(1000, np.int64)})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"(1000,), }   ", b"(1000000,), }"))
    assert "is damaged (label.npy is not as large as it says)" in message(path, Index.load)
    np.savez(path, **arrays, more=np.zeros(shard_bytes + (1 << 20), np.uint8))
    assert "larger than all of its shards together" in message(copy / "train")


@given(st.text(alphabet="ab_./A", min_size=1, max_size=14))
def test_member_names_are_split_as_webdataset_splits_them(name):
    mine, (key, extension) = split_name(name), base_plus_ext(name)
    if mine is not None:
        assert mine == (key, extension.lower())
    else:  # webdataset takes a hidden file for a sample whose key is its folder; it never is one
        hidden = name.rpartition("/")[2].startswith(".")
        assert key is None or hidden or name.startswith("__")


def test_an_index_is_mapped_and_an_older_one_read_as_it_lies(copy):
    path = copy / "train.index.npz"
    index = Index.load(path)
    for name in ("label", "offset", "key_text"):
        values = getattr(index, name)
        assert (values.flags.writeable, values.flags.owndata, values.ctypes.data % 64) == (False, False, 0)
    arrays = {name: value for name, value in np.load(path).items() if name != "largest_label"}
    np.savez(copy / "older.npz", **arrays)  # as earlier versions wrote it
    older = Index.load(copy / "older.npz")
    assert older.same_as(index)
    assert (older.classes, index.classes) == (3, 3)
    assert not older.label.flags.writeable


def test_a_large_index_is_checked_entry_by_entry(copy, monkeypatch):
    path = copy / "train.index.npz"
    shards = open_shards(copy / "train")
    whole = [shards.read(i) for i in range(30)]
    monkeypatch.setattr(index_module, "CHECKED_AT_ONCE", 64)
    assert [open_shards(copy / "train").read(i) for i in range(30)] == whole
    for field, value in (("offset", 1 << 40), ("size", -1), ("shard", 7), ("first", 99), ("key_first", -3)):
        changed = Index.load(path)
        values = getattr(changed, field).copy()
        values[2] = value
        setattr(changed, field, values)
        changed.save(copy / "bad.npz")
        found = Index.load(copy / "bad.npz")
        with pytest.raises(UserError, match=r"the index of train-000000\.tar and the other shards is damaged \(sample"):
            [(found.members(i), found.shard_of(i), found.key(i)) for i in range(3)]
        assert len(found.members(9)) == 2
