"""Corrupted CIFAR test sets on stand-ins of their files' form."""

from __future__ import annotations

import numpy as np
import pytest
from source_places import message

from kdstream.convert.make_shards import make_shards
from kdstream.convert.open_source import open_source
from kdstream.data.shards import open_shards


@pytest.mark.parametrize(("kind", "classes"), [("cifar10c", 10), ("cifar100c", 100)])
def test_corrupted_cifar(tmp_path, kind, classes):
    folder = tmp_path / "c"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (20, 32, 32, 3), np.uint8)
    labels = np.tile([3, 0, classes - 1, 1], 5).astype(np.uint8)
    for name, array in (("fog", images), ("snow", 255 - images), ("labels", labels)):
        np.save(folder / f"{name}.npy", array)
    source = open_source(f"{kind}:{folder}")
    assert list(source.splits) == [f"{name}_{n}" for name in ("fog", "snow") for n in range(1, 6)]
    assert (len(source.classes), len(set(source.classes)), source.classes) == (classes, classes, sorted(source.classes))
    make_shards(f"{kind}:{folder}", tmp_path / "s", splits=["fog_3"], processes=1)
    shards = open_shards(tmp_path / "s/fog_3")
    assert sorted(shards.labels.tolist()) == sorted(labels[:4].tolist())
    assert list(open_source(f"{kind}:{folder}", ["snow_5"]).splits) == ["snow_5"]
    assert np.array_equal(source.splits["snow_2"].images[0], 255 - images[4])
    assert "its splits are such as fog_1" in message(f"{kind}:{folder}", ["rain_1"])


def test_what_is_wrong_with_corruptions(tmp_path):
    np.save(tmp_path / "labels.npy", np.zeros(5, np.uint8))
    assert "holds no corruptions" in message(f"cifar10c:{tmp_path}")
    np.save(tmp_path / "fog.npy", np.zeros((4, 32, 32, 3), np.uint8))
    assert "fog.npy holds uint8 [4, 32, 32, 3], not uint8 [5, 32, 32, 3]" in message(f"cifar10c:{tmp_path}")
    np.save(tmp_path / "labels.npy", np.full(5, 10))
    assert "has labels 10 to 10, not 0 to 9" in message(f"cifar10c:{tmp_path}")
    np.save(tmp_path / "labels.npy", np.array([{}] * 5, object), allow_pickle=True)
    assert "labels.npy is no array of numbers" in message(f"cifar10c:{tmp_path}")
