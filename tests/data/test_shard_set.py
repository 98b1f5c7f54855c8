"""A split, opened: any sample by number and in one read, from threads, forks and pickles; damaged shards."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tars import message

from kdstream.convert.make_shards import make_shards
from kdstream.data import shard_set
from kdstream.data.shards import open_shards
from kdstream.data.verify import verify
from kdstream.errors import UserError


def files_by_key(source: Path, split: str) -> dict[str, Path]:
    return {str(p.relative_to(source / split).with_suffix("")): p for p in (source / split).rglob("*.*")}


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
