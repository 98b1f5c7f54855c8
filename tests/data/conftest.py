"""A data set of small images, the shards that make_shards makes of it, and a copy of them to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tars import image_bytes

from kdstream.convert.make_shards import make_shards


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def made(source, tmp_path_factory) -> Path:
    dest = tmp_path_factory.mktemp("made") / "pets"
    make_shards(f"imagefolder:{source}", dest, shard_count=3)
    return dest


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pets"))
