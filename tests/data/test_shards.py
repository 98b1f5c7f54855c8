"""Reading shards: any sample by number, as webdataset itself reads it; and what damaged or foreign sets say."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import re
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import base_plus_ext

from kdstream.convert.make_shards import make_shards
from kdstream.data import checksums as checksums_module
from kdstream.data import index as index_module
from kdstream.data import shard_set
from kdstream.data.image_stats import ImageStats
from kdstream.data.index import Index, split_name
from kdstream.data.kept import store
from kdstream.data.shards import has_split, open_shards
from kdstream.data.verify import verify
from kdstream.errors import UserError


def image_bytes(seed: int, size: tuple[int, int] = (9, 7), kind: str = "JPEG", mode: str = "RGB") -> bytes:
    shape = (*size, 3) if mode == "RGB" else size
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    """A tar as others write it; a text instead of bytes makes a symbolic link to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Two splits of three classes; JPEG and PNG, colour and grey; train in one size, val in several."""
    root = tmp_path_factory.mktemp("source") / "pets"
    for split, count in (("train", 10), ("val", 4)):
        for c, name in enumerate(("cat", "dog", "hen")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                seed = 100 * c + i + (1000 if split == "val" else 0)
                size = (9, 7) if split == "train" else (8 + i, 7)
                grey = i % 3 == 0
                kind, ending = ("PNG", "png") if i % 2 else ("JPEG", "JPEG")
                (folder / f"{i:04d}.{ending}").write_bytes(image_bytes(seed, size, kind, "L" if grey else "RGB"))
    return root


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    dest = tmp_path_factory.mktemp("made") / "pets"
    make_shards(f"imagefolder:{source}", dest, shard_count=3)
    return dest


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pets"))


def files_by_key(source: Path, split: str) -> dict[str, Path]:
    return {str(p.relative_to(source / split).with_suffix("")): p for p in (source / split).rglob("*.*")}


# ---- sets that make_shards made


def test_every_sample_is_its_file(source, made):
    for split in ("train", "val"):
        shards = open_shards(made / split)
        files = files_by_key(source, split)
        keys = set()
        for i in range(len(shards)):
            sample = shards.read(i)
            key = sample["__key__"]
            keys.add(key)
            extension = "png" if files[key].suffix == ".png" else "jpg"
            assert set(sample) == {"__key__", "__url__", extension, "cls", "index"}
            assert sample[extension] == files[key].read_bytes()
            assert sample["index"] == i
            assert shards.key(i) == key
            assert Path(sample["__url__"]).parent == made
            assert shards.classes[int(sample["cls"])] == key.split("/")[0]
            assert shards.labels[i] == int(sample["cls"])
        assert keys == set(files)


def test_attributes(source, made):
    train, val = open_shards(made / "train"), open_shards(str(made / "val"))
    assert (train.name, train.split, train.path) == ("pets", "train", made)
    assert train.classes == val.classes == ["cat", "dog", "hen"]
    assert train.num_classes == 3
    assert (len(train), len(val)) == (30, 12)
    assert train.labels.dtype == np.int64
    assert train.image_size == (9, 7)
    assert val.image_size is None
    assert train.fingerprint != val.fingerprint
    with pytest.raises(ValueError, match="read-only"):
        train.labels[0] = 1


def test_mean_and_std_are_those_of_the_train_pixels(source, made):
    pixels = np.concatenate(
        [np.asarray(Image.open(p).convert("RGB")).reshape(-1, 3) for p in (source / "train").rglob("*.*")]
    )
    for split in ("train", "val"):
        shards = open_shards(made / split)
        np.testing.assert_allclose(shards.mean, pixels.mean(0) / 255, rtol=1e-12)
        np.testing.assert_allclose(shards.std, pixels.std(0) / 255, rtol=1e-12)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 999)), min_size=1, max_size=6), st.data()
)
@settings(max_examples=25)
def test_statistics_do_not_depend_on_order_or_grouping(sizes, data):
    images = [Image.open(io.BytesIO(image_bytes(seed, (h, w), "PNG"))) for h, w, seed in sizes]
    whole, left, right = ImageStats(), ImageStats(), ImageStats()
    for image in images:
        whole.add(image)
    cut = data.draw(st.integers(0, len(images)))
    for i, image in enumerate(data.draw(st.permutations(images))):
        (left if i < cut else right).add(image)
    right.merge(left)
    assert right.mean_std() == whole.mean_std()
    assert (right.count, right.smallest, right.largest) == (whole.count, whole.smallest, whole.largest)
    assert ImageStats.from_json(json.loads(json.dumps(right.to_json()))).mean_std() == whole.mean_std()


def test_webdataset_reads_the_same_samples_in_the_same_order(made):
    shards = open_shards(made / "train")
    urls = sorted(str(path) for path in made.glob("train-*.tar"))
    assert len(urls) == 3
    found = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(found) == len(shards)
    for i, sample in enumerate(found):
        mine = shards.read(i)
        extension = "png" if "png" in mine else "jpg"
        assert sample["__key__"] == mine["__key__"]
        assert sample["cls"] == shards.labels[i]
        pixels = np.asarray(Image.open(io.BytesIO(mine[extension])).convert("RGB"))
        np.testing.assert_array_equal(sample[extension], pixels)


def test_plain_readers_get_mixed_classes(made):
    labels = open_shards(made / "train").labels.tolist()
    assert labels != sorted(labels)
    assert len(set(labels[:10])) == 3  # the first shard alone


def test_one_read_per_sample(made, monkeypatch):
    shards, calls = open_shards(made / "train"), []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: calls.append(args) or real(*args))
    for i in range(len(shards)):
        shards.read(i)
    assert len(calls) == len(shards)


def test_numbers_out_of_range(made):
    shards = open_shards(made / "val")
    for index in (-1, 12):
        with pytest.raises(IndexError, match=r"0\.\.11"):
            shards.read(index)
    assert shards.read(np.int64(3))["index"] == 3


def test_pickle_is_small_and_notices_other_contents(source, copy):
    shards = open_shards(copy / "train")
    shards.read(0)
    data = pickle.dumps(shards)
    assert len(data) < 1000
    assert pickle.loads(data).read(5) == shards.read(5)
    make_shards(f"imagefolder:{source}", copy, seed=1, force=True)
    with pytest.raises(UserError, match="have changed since"):
        pickle.loads(data)


def _read_all(shards, results):
    results.put([shards.read(i)["__key__"] for i in range(len(shards))])


def test_reading_after_a_fork_while_the_parent_reads(made):
    shards = open_shards(made / "train")
    expected = [shards.read(i)["__key__"] for i in range(len(shards))]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_read_all, args=(shards, results)) for _ in range(2)]
    for child in children:
        child.start()
    assert [shards.read(i)["__key__"] for i in range(len(shards))] == expected
    assert [results.get(timeout=30) for _ in children] == [expected, expected]
    for child in children:
        child.join()


def test_few_open_files_and_many_threads(made, monkeypatch):
    monkeypatch.setattr(shard_set, "OPEN_FILES", 1)
    shards = open_shards(made / "train")
    expected = [shards.read(i) for i in range(len(shards))]
    before = len(os.listdir("/proc/self/fd"))
    order = np.random.default_rng(0).integers(0, len(shards), 2000).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(shards.read, order)) == [expected[i] for i in order]
    assert len(os.listdir("/proc/self/fd")) <= before


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
        getattr(changed, field)[place] = value
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


# ---- messages


def message(path, opener=open_shards) -> str:
    with pytest.raises(UserError) as caught:
        opener(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_missing_folder_and_splits(made, tmp_path):
    text = message(tmp_path / "shards" / "cifar10" / "train")
    assert "no shards at" in text
    assert f"kdstream shards cifar10 {tmp_path}/shards/cifar10`" in text
    assert message(made / "tset").endswith("has no split 'tset': found train, val")
    assert f"{made}/train" in message(made)
    (tmp_path / "empty").mkdir()
    assert "holds no .tar files" in message(tmp_path / "empty")
    assert "is a file: name the folder" in message(made / "train-000000.tar")


@pytest.mark.parametrize(
    "url", ["pipe:touch HACKED", "https://a/b.tar", "s3://a/b", "file:/tmp/x", "gs://x/{0..9}.tar"]
)
def test_urls_are_refused(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ("command" if url.startswith("pipe") else "only local folders") in message(url)
    assert not list(tmp_path.iterdir())


def test_truncated_missing_and_changed_shards(copy):
    shard = copy / "train-000001.tar"
    opened = open_shards(copy / "train")
    data = shard.read_bytes()
    shard.write_bytes(data[:-3000])
    assert f"{shard} is truncated: {len(data) - 3000} bytes of {len(data)}" in message(copy / "train")
    last = int(np.flatnonzero(opened._index.shard == 1)[-1])
    assert "is truncated" in message(last, opened.read)  # also when it happens after opening
    assert "is truncated" in message(copy, verify)
    shard.write_bytes(data + b"x")
    assert "has changed" in message(copy / "train")
    shard.unlink()
    assert f"{shard} is missing" in message(copy / "train")
    assert "is missing" in message(int(np.flatnonzero(opened._index.shard == 2)[0]), _after_removal(copy, opened))
    assert open_shards(copy / "val")  # the other split is untouched


def _after_removal(folder: Path, opened):
    def read(index: int):
        (folder / "train-000002.tar").unlink()
        return opened.read(index)

    return read


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


def test_stale_index(source, copy, tmp_path):
    make_shards(f"imagefolder:{source}", tmp_path / "other", shard_count=3, seed=5)
    shutil.copy(tmp_path / "other" / "train.index.npz", copy / "train.index.npz")
    assert "belongs to other shards" in message(copy / "train")
    assert "belongs to other shards" in message(copy, verify)


def test_damaged_dataset_json(copy):
    path = copy / "dataset.json"
    info = json.loads(path.read_bytes())
    for change, expected in (
        (b"{", "no valid JSON"),
        (json.dumps({**info, "schema": 99}).encode(), "update kdstream"),
        (json.dumps({**info, "classes": 3}).encode(), "classes: Input should be a valid list"),
        (json.dumps({**info, "classes": ["cat"]}).encode(), "names 1 classes, but a sample of train has class 2"),
    ):
        path.write_bytes(change)
        assert expected in message(copy / "train")
    info["splits"]["train"]["shards"][0]["name"] = "../train-000000.tar"
    path.write_text(json.dumps(info))
    assert "splits.train.shards.0.name" in message(copy / "train")


def test_half_made_folder(copy):
    (copy / "dataset.json").unlink()
    (copy / ".making").mkdir()
    for path in (copy, copy / "train"):
        assert "half-made: run the same make_shards command again" in message(path)
    assert "half-made" in message(copy, verify)


# ---- tars of others

JPG = image_bytes(0)


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


def test_index_goes_to_the_cache_where_the_folder_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")  # writing below a file fails for every user, also for root
    saved = []

    def save(path: Path) -> None:
        path.write_bytes(b"index")
        saved.append(path)

    place = store("x.npz", save, (blocked, tmp_path / "cache" / "deep"))
    assert saved == [place] == [tmp_path / "cache" / "deep" / "x.npz"]
    with pytest.raises(UserError, match="cannot store the index"):
        store("x.npz", save, (blocked, blocked / "deeper"))


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


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tuple[str, bytes, str]:
    return name, kind, target


def write_links(path: Path, members: list[tuple], form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of files, (name, bytes), and links, see :func:`link`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, *rest in members:
            member = tarfile.TarInfo(name)
            if len(rest) == 2:
                member.type, member.linkname = rest
                tar.addfile(member)
            else:
                member.size = len(rest[0])
                tar.addfile(member, io.BytesIO(rest[0]))
    return path


SYM = tarfile.SYMTYPE


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


def test_more_extensions_than_an_index_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "MOST_EXTENSIONS", 10)
    members = [("a.jpg", JPG), ("a.cls", b"1"), *((f"a.{n}", b"") for n in range(8))]
    write_tar(tmp_path / "x" / "0.tar", members)
    assert len(open_shards(tmp_path / "x")) == 1
    write_tar(tmp_path / "x" / "1.tar", [*members, ("a.8", b"")])
    assert "more than 10 different extensions up to 'a.8'" in message(tmp_path / "x")


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
    assert "nothing to verify" in message(tmp_path / "a" / "test", verify)


def test_a_split_whose_shards_are_gone_is_still_meant(copy):
    for path in copy.glob("val-*.tar"):
        path.unlink()
    assert has_split(copy, "val")
    assert not has_split(copy, "test")
    assert "val-000000.tar is missing" in message(copy / "val")


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


@given(st.text(alphabet="ab_./A", min_size=1, max_size=14))
def test_member_names_are_split_as_webdataset_splits_them(name):
    mine, (key, extension) = split_name(name), base_plus_ext(name)
    if mine is not None:
        assert mine == (key, extension.lower())
    else:  # webdataset takes a hidden file for a sample whose key is its folder; it never is one
        hidden = name.rpartition("/")[2].startswith(".")
        assert key is None or hidden or name.startswith("__")
