"""Sources: what each finds, how keys are made, and what bad places say."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100
from webdataset.tariterators import base_plus_ext

from kdstream.convert.make_shards import make_shards
from kdstream.convert.open_source import SOURCES, open_source
from kdstream.convert.sources.cifar import cifar
from kdstream.convert.split import unique_keys
from kdstream.data.shards import open_shards
from kdstream.errors import UserError


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG")
    return path


def message(text: str, splits=None) -> str:
    with pytest.raises(UserError) as caught:
        open_source(text, splits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- keys


@given(st.lists(st.tuples(st.text(max_size=6), st.text(max_size=6)), max_size=30))
def test_keys_are_distinct_and_survive_webdatasets_naming(parts):
    keys = unique_keys(parts)
    assert len(set(keys)) == len(parts)
    for key in keys:
        assert base_plus_ext(f"{key}.jpg") == (key, "jpg")
        assert not key.startswith("__")
        key.encode("utf-8")


def test_keys_are_readable():
    parts = [("bird", "0338"), ("v1.0", "a.b"), ("bird", "0338"), ("bird", "0338-2"), ("..", "x"), ("__c__", "x")]
    assert unique_keys(parts) == ["bird/0338", "v1_0/a_b", "bird/0338-2", "bird/0338-2-2", "x__/x", "x__c__/x"]


# ---- imagefolder


def test_imagefolder_with_one_split(tmp_path):
    a = write_image(tmp_path / "hen" / "1.jpg", 1)
    b = write_image(tmp_path / "hen" / "1.png", 2)
    c = write_image(tmp_path / "cat" / "deep" / "x.y.JPEG", 3)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "._x.jpg").write_text("a Mac's")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".hidden").mkdir()
    source = open_source(f"imagefolder:{tmp_path}")
    assert source.classes == ["cat", "hen"]
    assert list(source.splits) == ["train"]
    split = source.splits["train"]
    assert len(split) == 3
    assert list(split) == [
        ("cat/deep/x_y", c.read_bytes(), "jpg", 0),
        ("hen/1", a.read_bytes(), "jpg", 1),
        ("hen/1-2", b.read_bytes(), "png", 1),
    ]
    assert split.nbytes() == sum(len(item.data) for item in split)
    assert source.notes == ["1 files without an image's extension left out, e.g. cat/notes.txt"]
    assert list(open_source(f"imagefolder:{tmp_path}", ["val"]).splits) == ["val"]


def test_imagefolder_with_splits(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for name in ("b", "a"):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.jpg", i)
    source = open_source(f"imagefolder:{tmp_path}")
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6, "val": 4, "test": 2}
    assert source.classes == ["a", "b"]
    assert list(open_source(f"imagefolder:{tmp_path}", ["test", "train"]).splits) == ["train", "test"]
    write_image(tmp_path / "extra" / "a" / "0.jpg")
    write_image(tmp_path / "extra" / "b" / "0.jpg")
    assert "also the folder 'extra'" in message(f"imagefolder:{tmp_path}")
    assert list(open_source(f"imagefolder:{tmp_path}", ["train", "extra"]).splits) == ["train", "extra"]
    assert "no split 'nope'" in message(f"imagefolder:{tmp_path}", ["train", "nope"])
    write_image(tmp_path / "val" / "c" / "0.jpg")


def test_imagefolder_follows_links_but_not_in_circles(tmp_path):
    image = write_image(tmp_path / "elsewhere" / "1.jpg")
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "2.jpg").symlink_to(image)
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    split = open_source(f"imagefolder:{tmp_path / 'data'}").splits["train"]
    assert [item.key for item in split] == ["cat/2", "dog/1"]


def test_imagefolder_with_a_pipe_or_a_broken_link(tmp_path):
    write_image(tmp_path / "cat" / "1.jpg")
    os.mkfifo(tmp_path / "cat" / "2.jpg")
    assert "2.jpg: it is no file" in message(f"imagefolder:{tmp_path}")
    (tmp_path / "cat" / "2.jpg").unlink()
    (tmp_path / "cat" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    assert "2.jpg: No such file" in message(f"imagefolder:{tmp_path}")


def test_imagefolder_messages(tmp_path):
    assert "needs a folder" in message("imagefolder")
    assert "nothing follows the colon" in message("imagefolder:")
    assert "does not exist" in message(f"imagefolder:{tmp_path / 'no'}")
    image = write_image(tmp_path / "flat" / "1.jpg")
    assert "is a file" in message(f"imagefolder:{image}")
    assert "has no class folders" in message(f"imagefolder:{tmp_path / 'flat'}")
    write_image(tmp_path / "some" / "cat" / "1.jpg")
    (tmp_path / "some" / "dog").mkdir()
    assert "class folder 'dog'" in message(f"imagefolder:{tmp_path / 'some'}")
    (tmp_path / "some" / "dog").rmdir()
    os.mkdir(os.fsencode(tmp_path / "some") + b"/\xff")
    assert "not valid UTF-8" in message(f"imagefolder:{tmp_path / 'some'}")
    assert "did you mean imagefolder:" in message(str(tmp_path))
    assert "did you mean 'imagefolder'?" in message("imagefoldr:x")
    assert "makes one split, not 2" in message(f"imagefolder:{tmp_path / 'some'}", ["a", "b"])


def test_identity_follows_the_files(tmp_path):
    image = write_image(tmp_path / "cat" / "1.jpg")
    first = open_source(f"imagefolder:{tmp_path}").splits["train"].identity()
    assert open_source(f"imagefolder:{tmp_path}").splits["train"].identity() == first
    os.utime(image, ns=(1, 1))
    assert open_source(f"imagefolder:{tmp_path}").splits["train"].identity() != first


# ---- csv


def csv_source(folder: Path, text: str):
    for name in ("a", "b", "c"):
        write_image(folder / "img" / f"{name}.jpg", ord(name))
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return f"csv:{folder / 't.csv'}"


def test_csv_with_names_header_and_splits(tmp_path):
    text = (
        "\ufefflabel,split,path\nzebra,train,img/a.jpg\n\nant,val,img/b.jpg\nant,train,img/a.jpg\nant,train,img/a.jpg\n"
    )
    source = open_source(csv_source(tmp_path, text))
    assert source.classes == ["ant", "zebra"]
    train = list(source.splits["train"])
    assert [(item.key, item.label) for item in train] == [("zebra/a", 1), ("ant/a", 0), ("ant/a-2", 0)]
    assert train[0].data == (tmp_path / "img" / "a.jpg").read_bytes()
    assert [item.key for item in source.splits["val"]] == ["ant/b"]


def test_csv_with_numbers_and_no_header(tmp_path):
    source = open_source(csv_source(tmp_path, f"img/a.jpg,3\n{tmp_path}/img/b.jpg,0\nimg/c.jpg,10\n"))
    assert source.classes == [str(i) for i in range(11)]
    assert [item.label for item in source.splits["train"]] == [3, 0, 10]
    assert source.notes == ["8 of the classes 0..10 have no row, e.g. 1"]
    assert list(open_source(source.name, ["test"]).splits) == ["test"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no rows"),
        ("path,label\n", "has no rows"),
        ("img/a.jpg\n", "line 1: 1 columns instead of 2"),
        ("path,label\nimg/a.jpg,x\nimg/nope.jpg,x\n", "line 3: there is no file"),
        ("photo,bird\nimg/a.jpg,x\n", "a header must name the columns path and label (seen: 'photo', 'bird')"),
        ("img/a.jpg,\n", "line 1: the label is empty"),
        (",x\n", "line 1: the path is empty"),
        ("path,label,split\nimg/a.jpg,x,my split\n", "split 'my split' is no name"),
        ("img,x\n", "img' is no file"),
        ("t.csv,x\n", "does not end in .jpg"),
    ],
)
def test_csv_messages(tmp_path, text, expected):
    assert expected in message(csv_source(tmp_path, text))


def test_csv_that_is_none(tmp_path):
    assert "needs a file" in message("csv")
    assert "cannot read" in message(f"csv:{tmp_path / 'no.csv'}")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    assert "no CSV file in UTF-8" in message(f"csv:{tmp_path / 'x.csv'}")
    assert "makes one split, not 2" in message(csv_source(tmp_path, "img/a.jpg,x\n"), ["a", "b"])


# ---- digits


def test_digits():
    source = open_source("digits")
    train, val = source.splits["train"], source.splits["val"]
    assert (len(train), len(val)) == (1438, 359)
    assert not set(train.keys) & set(val.keys)
    for label in range(10):
        held, kept = int((val.labels == label).sum()), int((train.labels == label).sum())
        assert held == round((held + kept) / 5)
    from sklearn.datasets import load_digits

    data = load_digits()
    for split in (train, val):
        for i in (0, 7, 200):
            item = split[i]
            number = int(item.key.split("/")[1])
            image = Image.open(io.BytesIO(item.data))
            assert (image.format, image.mode, image.size) == ("PNG", "L", (16, 16))
            assert item.label == data.target[number] == int(item.key.split("/")[0])
            back = np.asarray(image.resize((8, 8), Image.Resampling.BOX), float) * 16 / 255
            assert np.corrcoef(back.ravel(), data.images[number].ravel())[0, 1] > 0.9
    assert open_source("digits").splits["val"].keys == val.keys
    assert "takes no place" in message("digits:here")
    assert "has no split 'test': found train, val" in message("digits", ["test"])


# ---- CIFAR, on a small stand-in in torchvision's file format


def cifar_stand_in(base, root: Path, per_file: int):
    """Files of random pixels, and the dataset class derived from ``base`` that knows their checksums: torchvision
    reads them as it reads the real ones, checksums included."""
    rng = np.random.default_rng(0)
    folder = root / base.base_folder
    folder.mkdir(parents=True)
    fine = base is CIFAR100
    names = [f"class {i}" for i in range(100 if fine else 10)]
    images: dict[str, np.ndarray] = {}

    def write(name: str, content: dict) -> str:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def write_batch(name: str) -> list[str]:
        images[name] = rng.integers(0, 256, (per_file, 3, 32, 32), np.uint8)
        labels = [int(v) for v in rng.integers(0, len(names), per_file)]
        content = {"data": images[name].reshape(per_file, -1), ("fine_labels" if fine else "labels"): labels}
        return [name, write(name, content)]

    class StandIn(base):
        train_list = [write_batch(name) for name, _ in base.train_list]  # noqa: RUF012
        test_list = [write_batch(name) for name, _ in base.test_list]  # noqa: RUF012
        meta = {**base.meta, "md5": write(base.meta["filename"], {base.meta["key"]: names})}  # noqa: RUF012

    return StandIn, names, images


@pytest.mark.parametrize("base", [CIFAR10, CIFAR100])
def test_cifar(tmp_path, base):
    dataset, names, images = cifar_stand_in(base, tmp_path, 6)
    source = cifar(dataset, base.__name__.lower(), str(tmp_path))
    assert source.classes == names
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 6 * len(base.train_list), "test": 6}
    expected = np.concatenate([images[name] for name, _ in base.train_list]).transpose(0, 2, 3, 1)
    for i, item in enumerate(source.splits["train"]):
        image = Image.open(io.BytesIO(item.data))
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), expected[i])
        assert item.key == f"{names[item.label]}/{i:05d}"


def test_cifar_becomes_shards(tmp_path, monkeypatch):
    dataset, _, images = cifar_stand_in(CIFAR100, tmp_path / "raw", 20)
    monkeypatch.setattr("torchvision.datasets.CIFAR100", dataset)
    made = make_shards(f"cifar100:{tmp_path / 'raw'}", tmp_path / "c100")
    assert made.info.source == f"cifar100:{tmp_path / 'raw'}"
    shards = open_shards(tmp_path / "c100" / "test")
    assert (shards.num_classes, shards.image_size, len(shards)) == (100, (32, 32), 20)
    found = {shards.read(i)["__key__"].split("/")[1]: shards.read(i)["png"] for i in range(20)}
    for i in range(20):
        pixels = np.asarray(Image.open(io.BytesIO(found[f"{i:05d}"])))
        np.testing.assert_array_equal(pixels, images["test"][i].transpose(1, 2, 0))


def test_cifar_with_other_files_is_refused_before_it_is_read(tmp_path):
    cifar_stand_in(CIFAR10, tmp_path, 2)  # right format, but not the files that torchvision knows
    assert "checksums differ" in message(f"cifar10:{tmp_path}")


# ---- sources of one's own

OWN = """
import numpy as np
import kdstream as kd

def squares(place, splits):
    count = int(place or 6)
    images = np.full((count, 8, 8, 3), 200, np.uint8)
    labels = np.arange(count) % 2
    split = kd.ArraySplit(images, [f"{label}/{i}" for i, label in enumerate(labels)], labels)
    return kd.Source(f"squares:{count}", ["a", "b"], {name: split for name in splits or ["train"]})

def wrong(place, splits):
    return [place]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_sources").mkdir()
    (tmp_path / "my_sources" / "__init__.py").write_text("")
    (tmp_path / "my_sources" / "shapes.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_source_of_ones_own_by_dotted_path(own, tmp_path):
    made = make_shards("my_sources.shapes:squares:10", tmp_path / "set", processes=1)
    assert made.info.splits["train"].count == 10
    shards = open_shards(tmp_path / "set" / "train")
    assert (shards.classes, sorted(shards.labels.tolist())) == (["a", "b"], [0] * 5 + [1] * 5)
    assert len(open_source("my_sources.shapes:squares").splits["train"]) == 6


def test_what_is_no_source_is_refused(own):
    assert "gave list, not a kdstream.Source" in message("my_sources.shapes:wrong")
    assert "did you mean 'squares'" in message("my_sources.shapes:squers:3")
    assert "standard library" in message("os.path:join:3")
    assert "did you mean 'csv'?" in message("cvs:labels")


def test_every_source_of_the_table_is_a_function_of_place_and_splits():
    import inspect

    for name in SOURCES:
        assert list(inspect.signature(SOURCES.find(name)).parameters) == ["place", "splits"]
