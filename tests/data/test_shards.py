"""Opening a set of shards: what it tells of itself, and what missing, stale and half-made folders say."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from tars import message

from kdstream.convert.make_shards import make_shards
from kdstream.data.shards import has_split, open_shards
from kdstream.data.verify import verify


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
    "url", ["pipe:touch HACKED", "pipe://touch HACKED", "file:/tmp/x", "file:///tmp/x", "ssh://host/x"]
)
def test_urls_are_refused(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ("two slashes" if url == "file:/tmp/x" else "no command is ever run") in message(url)
    assert not list(tmp_path.iterdir())


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


def test_a_split_whose_shards_are_gone_is_still_meant(copy):
    for path in copy.glob("val-*.tar"):
        path.unlink()
    assert has_split(copy, "val")
    assert not has_split(copy, "test")
    assert "val-000000.tar is missing" in message(copy / "val")
