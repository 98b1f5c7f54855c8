"""hf: parquet files as the hub has them, by a small stand-in; folders of images; what the hub answers."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from source_places import message, write_image
from tars import image_bytes

from kdstream.convert.open_source import open_source
from kdstream.convert.sources.hugging_face import _parquet


def write_parquet(path, rows, names=None, column="label"):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": data, "path": None} for data, _ in rows]
    table = pyarrow.table({"image": images, column: [label for _, label in rows], "width": [9] * len(rows)})
    if names is not None:
        features = {"image": {"_type": "Image"}, column: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def rows(count, first=0, names=("0", "1")):
    return [(image_bytes(i + first), i % len(names)) for i in range(count)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_parquet_files_of_several_splits(tmp_path):
    place = tmp_path / "birds"
    write_parquet(place / "data" / "train-00000-of-00002.parquet", rows(70), ["hen", "wren"])
    write_parquet(place / "data" / "train-00001-of-00002.parquet", rows(3, 70), ["hen", "wren"])
    write_parquet(place / "data" / "validation-00000-of-00001.parquet", rows(4, 90), ["hen", "wren"])
    source = open_source(f"hf:{place}")
    assert (source.classes, {n: len(s) for n, s in source.splits.items()}) == (["hen", "wren"], {"train": 73, "val": 4})
    train = source.splits["train"]
    assert [train[i].data for i in (0, 69, 70, 72)] == [image_bytes(i) for i in (0, 69, 70, 72)]
    assert (train[70].extension, train[71].label, train[71].key) == ("jpg", 1, "wren/00000071")
    assert "left out: width" in source.notes[0]
    assert list(open_source(f"hf:{place}", ["val"]).splits) == ["val"]


def test_classes_that_the_file_does_not_name(tmp_path):
    write_parquet(tmp_path / "a" / "train.parquet", [(image_bytes(0), "wren"), (image_bytes(1), "hen")])
    assert open_source(f"hf:{tmp_path / 'a'}").classes == ["hen", "wren"]
    write_parquet(tmp_path / "b" / "train.parquet", [(image_bytes(0), None), (image_bytes(1), 1)])
    assert "holds neither class numbers nor names" in message(f"hf:{tmp_path / 'b'}")
    write_parquet(tmp_path / "c" / "train.parquet", rows(2), column="breed")
    assert "a column of labels is needed, found none (it has image, breed, width)" in message(f"hf:{tmp_path / 'c'}")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.parquet").write_text("hello")
    assert "is no parquet file, or damaged" in message(f"hf:{tmp_path / 'd'}")


def test_names_of_files_say_splits_and_configurations():
    assert _parquet(
        ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001-0a1b2c3d4e5f.parquet"], None, "x"
    ) == {
        "train": ["data/train-00000-of-00001.parquet"],
        "test": ["data/test-00000-of-00001-0a1b2c3d4e5f.parquet"],
    }
    converted = ["small/train/0000.parquet", "small/train/0001.parquet", "small/validation/0000.parquet"]
    assert _parquet(converted, None, "x") == {"train": converted[:2], "val": converted[2:]}
    assert _parquet([*converted, "large/train/0000.parquet"], "large", "x") == {"train": ["large/train/0000.parquet"]}
    assert _parquet(["README.md", "train/hen/1.jpg"], None, "x") == {}


def test_folders_of_images_and_places_that_there_are_not(tmp_path, monkeypatch):
    for name in ("hen", "wren"):
        write_image(tmp_path / "set" / "train" / name / "1.png")
    source = open_source(f"hf:{tmp_path / 'set'}")
    assert (source.name, source.classes, len(source.splits["train"])) == (f"hf:{tmp_path / 'set'}", ["hen", "wren"], 2)
    monkeypatch.chdir(tmp_path)
    assert "neither a folder nor a data set's name" in message("hf:birds")
    assert "needs a data set" in message("hf")

    def unknown(self, *args, **settings):
        raise RepositoryNotFoundError("404", response=Answer())

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unknown)
    assert "the hub has no data set 'org/birds', or it is private" in message("hf:org/birds")


class Answer:
    """Of a server."""

    request, status_code = None, 404

    def __init__(self):
        self.headers = {}


def test_a_data_set_of_the_hub_is_fetched_as_far_as_it_is_needed(tmp_path, monkeypatch):
    write_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", rows(2))
    files = ["README.md", "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"]
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo, **kw: asked.append(kw) or files)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda repo, **kw: asked.append(kw) or str(tmp_path / "hub")
    )
    source = open_source("hf:org/birds@v2", ["train"])
    assert (source.name, len(source.splits["train"])) == ("hf:org/birds@v2", 2)
    assert asked == [
        {"repo_type": "dataset", "revision": "v2"},
        {"repo_type": "dataset", "revision": "v2", "allow_patterns": ["data/train-00000-of-00001.parquet"]},
    ]
