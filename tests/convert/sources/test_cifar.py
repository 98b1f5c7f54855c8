"""cifar10 and cifar100, on a small stand-in in torchvision's file format."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_places import message
from torchvision.datasets import CIFAR10, CIFAR100

from kdstream.convert.make_shards import make_shards
from kdstream.convert.sources.cifar import cifar
from kdstream.data.shards import open_shards


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
