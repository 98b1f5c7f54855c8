"""dataset.json: whatever is changed in it is refused, told of, or means the same."""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest

from kdstream.convert.make_shards import make_shards
from kdstream.data.dataset_info import DatasetInfo, load_dataset_info
from kdstream.data.sealed_json import sealed
from kdstream.data.shards import open_shards
from kdstream.data.verify import verify
from kdstream.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "digits"
    make_shards("digits", folder, limit=20, shard_count=2, processes=1)
    return folder


def loaded(folder) -> DatasetInfo | str:
    try:
        return load_dataset_info(folder)
    except UserError as error:
        return str(error)


def test_a_thousand_changed_files(made, tmp_path):
    whole, rng = (made / "dataset.json").read_bytes(), random.Random(0)
    original = load_dataset_info(made)
    assert not original.changed
    refused = told = 0
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3))):
            place = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[place] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[place] = rng.choice(b'0123456789-.eE"[]{},:\\ nN/')
            elif kind == 2:
                del data[place : place + rng.choice((1, 5, 50))]
            else:
                data[place:place] = rng.choice((b"9" * 30, b"../", b"NaN", b"-", b"\\u0000", b"null", b"[" * 2000))
        (tmp_path / "dataset.json").write_bytes(data)
        found = loaded(tmp_path)
        if isinstance(found, str):
            assert "\n" not in found
            refused += 1
        elif found.model_dump() != original.model_dump():
            assert found.changed
            told += 1
    assert refused > 500
    assert told > 50


@pytest.mark.parametrize("name", ["../x.tar", "/x.tar", "a/x.tar", "x\0.tar", "", "..", "\ud800.tar"])
def test_names_lead_nowhere_else(made, tmp_path, name):
    for field in ("shard", "index", "split"):
        info = json.loads((made / "dataset.json").read_bytes())
        train = info["splits"]["train"]
        if field == "shard":
            train["shards"][0]["name"] = name
        elif field == "index":
            train["index"] = name.replace(".tar", ".npz")
        elif name not in ("..", "x\0.tar"):
            info["splits"][name] = info["splits"].pop("train")
        else:
            continue
        (tmp_path / "dataset.json").write_text(json.dumps(info))
        assert isinstance(loaded(tmp_path), str)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("splits", "train", "mean"), [float("nan"), 0, 0]),
        (("splits", "train", "std"), [0, float("inf"), 0]),
        (("splits", "train", "mean"), [0, 0, 255]),
        (("splits", "train", "image_size", "min"), [0, 16]),
        (("splits", "train", "count"), 21),
        (("splits", "train", "fingerprint"), "0" * 32),
        (("splits", "train", "shards", 0, "bytes"), 10**30),
        (("splits", "train", "shards", 0, "sha256"), "0" * 64),
        (("schema",), None),
        (("classes",), []),
        (("more",), 1),
    ],
)
def test_values_that_cannot_be(made, tmp_path, path, value):
    info = json.loads((made / "dataset.json").read_bytes())
    place = info
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (tmp_path / "dataset.json").write_text(json.dumps(sealed(info)))
    assert "is damaged" in loaded(tmp_path)


def test_a_change_by_hand_is_told_and_verify_refuses_it(made, tmp_path):
    folder = tmp_path / "digits"
    shutil.copytree(made, folder)
    info = json.loads((folder / "dataset.json").read_bytes())
    info["classes"][3] = "three"
    (folder / "dataset.json").write_text(json.dumps(info))
    shards = open_shards(folder / "train")
    assert shards.classes[3] == "three"
    assert shards.notes == ["dataset.json has been changed since it was made"]
    with pytest.raises(UserError, match="has been changed since it was made"):
        verify(folder)
    del info["sha256"]  # as in those of older versions
    (folder / "dataset.json").write_text(json.dumps(info))
    assert open_shards(folder / "train").notes == []
    assert verify(folder).samples == 40


def test_shards_may_be_links_to_where_they_lie(made, tmp_path):
    """A link is the file system's, not the file's: data sets on several disks, and caches of downloads, are made so."""
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "digits"
    shutil.copytree(made, folder)
    for path in folder.glob("*.tar"):
        path.rename(tmp_path / "elsewhere" / path.name)
        os.symlink(tmp_path / "elsewhere" / path.name, path)
    assert len(open_shards(folder / "train")) == 20
    assert verify(folder).samples == 40
