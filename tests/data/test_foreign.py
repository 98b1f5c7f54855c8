"""Tars of others: their splits and samples, what is left out of them, and what damaged ones say."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from tars import JPG, image_bytes, message, write_links, write_tar

from kdstream.data.shards import open_shards


def test_foreign_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "birds"
    images = [image_bytes(i) for i in range(5)]
    write_tar(
        folder / "a.tar", [("x/1.JPG", images[0]), ("x/1.cls", b"4"), ("x/1.json", b"{}"), ("__meta__/y.txt", b"")]
    )
    write_tar(
        folder / "b.tar", [(f"{i}.{e}", d) for i in (1, 2, 3, 4) for e, d in (("cls", b"%d\n" % i), ("png", images[i]))]
    )
    shards = open_shards(folder)
    assert (shards.name, shards.split, len(shards)) == ("birds", "all", 5)
    assert shards.classes == ["0", "1", "2", "3", "4"]
    assert shards.labels.tolist() == [4, 1, 2, 3, 4]
    assert shards.image_size == (9, 7)
    first = shards.read(0)
    assert first == {
        "__key__": "x/1", "__url__": str(folder / "a.tar"), "jpg": images[0], "cls": b"4", "json": b"{}", "index": 0,
    }  # fmt: skip
    assert [shards.read(i)["png"] for i in (1, 2, 3, 4)] == images[1:]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in images]).reshape(-1, 3)
    np.testing.assert_allclose(shards.mean, pixels.mean(0) / 255, rtol=1e-12)
    assert (folder / "kdstream.index.npz").exists()
    assert not (tmp_path / "cache").exists()
    # The stored index is used; it is made anew when the tars change.
    stamp = (folder / "kdstream.index.npz").stat().st_mtime_ns
    assert open_shards(folder).fingerprint == shards.fingerprint
    assert (folder / "kdstream.index.npz").stat().st_mtime_ns == stamp
    write_tar(folder / "c.tar", [("9.jpg", JPG), ("9.cls", b"0")])
    assert len(open_shards(folder)) == 6
    assert open_shards(folder).fingerprint != shards.fingerprint


def test_foreign_splits_by_name_and_by_folder(tmp_path):
    train = [("a.jpg", JPG), ("a.cls", b"0"), ("b.jpg", image_bytes(1)), ("b.cls", b"2")]
    val = [("c.jpg", image_bytes(2, (5, 5))), ("c.cls", b"1")]
    write_tar(tmp_path / "one" / "birds-train-00.tar", train)
    write_tar(tmp_path / "one" / "birds-val-00.tar", val)
    write_tar(tmp_path / "two" / "train" / "0.tar", train)
    write_tar(tmp_path / "two" / "val" / "0.tar", val)
    for folder in (tmp_path / "one", tmp_path / "two"):
        a, b = open_shards(folder / "train"), open_shards(folder / "val")
        assert (a.name, a.split, len(a), b.split, len(b)) == (folder.name, "train", 2, "val", 1)
        assert a.mean == b.mean
        assert (a.num_classes, b.num_classes) == (3, 3)
        assert (a.image_size, b.image_size) == ((9, 7), (5, 5))
        assert "found splits: train, val" in message(folder / "test")
        assert pickle.loads(pickle.dumps(b)).read(0) == b.read(0)
    assert "several splits (train, val)" in message(tmp_path / "one")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("a.jpg", JPG)], "sample 'a' has no .cls member"),
        ([("a.jpg", JPG), ("a.cls", b"cat")], "class of sample 'a' is 'cat', not a whole number"),
        ([("a.jpg", JPG), ("a.cls", b"-1")], "class of sample 'a' is '-1'"),
        ([("a.jpg", JPG), ("a.cls", b"1.0")], "class of sample 'a' is '1.0'"),
        ([("a.txt", b"hello"), ("a.cls", b"1")], "sample 'a' has no image"),
        ([("a.jpg", JPG), ("a.JPG", JPG), ("a.cls", b"1")], "two members are called 'a.JPG'"),
        ([("a.cls", b"1"), ("b.jpg", JPG), ("a.jpg", JPG)], "sample 'a' has no image"),
        ([], "hold no samples"),
    ],
)
def test_foreign_samples_that_do_not_fit(tmp_path, members, expected):
    write_tar(tmp_path / "x" / "0.tar", members)
    assert expected in message(tmp_path / "x")


def test_links_are_not_followed_and_names_are_only_keys(tmp_path):
    outside = tmp_path / "secret"
    outside.write_bytes(b"3")
    write_tar(
        tmp_path / "x" / "0.tar",
        [
            ("link.jpg", str(outside)), ("link.cls", str(outside)),
            ("../../up.jpg", JPG), ("../../up.cls", b"1"),
            ("/root.jpg", JPG), ("/root.cls", b"0"),
        ],
    )  # fmt: skip
    before = sorted(p for p in tmp_path.rglob("*") if "kdstream" not in p.name)
    shards = open_shards(tmp_path / "x")
    assert [shards.read(i)["__key__"] for i in range(len(shards))] == ["../../up", "/root"]
    assert sorted(p for p in tmp_path.rglob("*") if "kdstream" not in p.name) == before


def test_joined_tars_are_read_to_the_last(tmp_path):
    parts = [
        write_tar(tmp_path / f"{i}.tar", [("a.jpg", image_bytes(i)), ("a.cls", b"%d" % i)]).read_bytes()
        for i in range(3)
    ]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "0.tar").write_bytes(b"".join(parts))
    shards = open_shards(tmp_path / "x")
    assert [(shards.key(i), shards.read(i)["jpg"]) for i in range(3)] == [("a", image_bytes(i)) for i in range(3)]
    (tmp_path / "x" / "0.tar").write_bytes(b"".join(parts)[:-9000])
    assert "truncated" in message(tmp_path / "x")


def test_names_keep_their_bytes(tmp_path):
    """Latin-1 and Shift-JIS beside UTF-8: as webdataset gives them, and no two of them become one."""
    raw = [b"caf\xe9", b"caf\xe8", "名前".encode("shift-jis"), "名前".encode(), b"back\\slash", b"new\nline"]
    names = [name.decode("utf-8", "surrogateescape") for name in raw]
    path = tmp_path / "x" / "0.tar"
    members = [
        (f"{n}.{e}", d) for i, n in enumerate(names) for e, d in (("JPG", image_bytes(i)), ("Cls", b" %d\n" % i))
    ]
    write_links(path, members)
    shards = open_shards(tmp_path / "x")
    assert [shards.key(i) for i in range(len(shards))] == names
    assert [os.fsencode(shards.key(i)) for i in range(len(shards))] == raw
    assert open_shards(tmp_path / "x").labels.tolist() == list(range(6))
    found = [sample["__key__"] for sample in wds.WebDataset(str(path), shardshuffle=False)]
    assert found == names


def test_what_belongs_to_no_sample_is_counted(tmp_path):
    write_tar(
        tmp_path / "x" / "0.tar",
        [
            ("README", b""), ("._a.jpg", b""), ("._a.cls", b""), ("__meta__/x.json", b""),
            ("a.jpg", JPG), ("a.cls", b"0007"), ("a.png", image_bytes(3, kind="PNG")), ("a.variants", b"x"),
            ("b.jpg", JPG), ("b.cls", b"1"), ("a.jpg", JPG), ("a.cls", b"2"),
        ],
    )  # fmt: skip
    (tmp_path / "x" / "1.tar.gz").write_bytes(b"")
    (tmp_path / "x" / "0.tar.gz").write_bytes(b"")  # that one is there unpacked
    shards = open_shards(tmp_path / "x")
    assert [(shards.key(i), int(shards.labels[i])) for i in range(len(shards))] == [("a", 7), ("b", 1), ("a", 2)]
    assert list(shards.read(0)) == ["__key__", "__url__", "jpg", "cls", "png", "index"]
    assert sorted(shards.notes) == [
        "compressed tars left out: 1, such as '1.tar.gz'; unpack them",
        "files without an extension left out: 1, such as 'README'",
        "hidden files left out: 2, such as '._a.jpg'",
        "members left out whose extension kdstream uses itself, .variants: 1, such as 'a.variants'",
        "samples with several images, of which the first is read: 1, such as 'a: .jpg, .png'",
    ]


def test_samples_that_do_not_fit_are_counted(tmp_path):
    members = [(f"{i}.jpg", JPG) for i in range(5)] + [
        ("ok.jpg", JPG),
        ("ok.cls", b"1"),
        ("t.jpg", JPG),
        ("t.txt", b""),
    ]
    write_tar(tmp_path / "x" / "0.tar", members)
    text = message(tmp_path / "x")
    assert "sample '0' has no .cls member" in text
    assert "(6 of the 7 samples in this shard do not fit)" in text


def test_every_cut_of_a_foreign_tar_is_noticed(tmp_path):
    path = write_tar(tmp_path / "x" / "0.tar", [("a.jpg", JPG), ("a.cls", b"1"), ("b.jpg", JPG), ("b.cls", b"0")])
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    for length in {*range(0, end + 511, 97), *range(0, end + 512, 512)}:  # the latter between members too
        path.write_bytes(data[:length])
        text = message(tmp_path / "x")
        assert str(path) in text
        assert "truncated" in text or "damaged" in text
    path.write_bytes(data)
    assert len(open_shards(tmp_path / "x")) == 2


def test_other_files_called_tar(tmp_path):
    import gzip

    folder = tmp_path / "x"
    path = write_tar(folder / "0.tar", [("a.jpg", JPG), ("a.cls", b"1")])
    whole = path.read_bytes()
    path.write_bytes(gzip.compress(whole))
    assert "is compressed" in message(folder)
    path.write_bytes(b"hello")
    assert "no tar file" in message(folder)
    path.write_bytes(whole[:512] + JPG + b"x" * 3000)
    assert "damaged" in message(folder)
    path.rename(folder / "0.tar.gz")
    assert "unpack its compressed tars" in message(folder)
