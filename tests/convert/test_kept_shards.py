"""Kept shards: made once for a source as it is, and anew when it changes."""

from __future__ import annotations

import os

import numpy as np
import pytest
from source_places import write_image

import kdstream as kd
from kdstream.convert import kept_shards as kept_module
from kdstream.convert.kept_shards import kept_shards
from kdstream.convert.open_source import is_source
from kdstream.data.shards import open_shards

MADE: list[object] = []


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of its own; and a count of the conversions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    MADE.clear()
    real = kept_module.make_shards
    monkeypatch.setattr(kept_module, "make_shards", lambda *args, **kw: MADE.append(args) or real(*args, **kw))


@pytest.fixture
def birds(tmp_path):
    for label, name in enumerate(("hen", "wren")):
        for i in range(5):
            write_image(tmp_path / "birds" / name / f"{i}.png", 10 * label + i)
    return tmp_path / "birds"


def test_a_folder_is_converted_once_and_again_when_it_changes(birds):
    text = f"imagefolder:{birds}"
    folder = kept_shards(text)
    assert kept_shards(text) == folder
    assert (folder.name[:18], len(MADE), len(open_shards(folder / "train"))) == ("imagefolder-birds-", 1, 10)
    held = kept_shards(text, hold_out=0.2)
    assert [len(open_shards(held / split)) for split in ("train", "val")] == [8, 2]
    os.utime(birds / "hen" / "0.png", ns=(5, 5))
    changed = kept_shards(text)
    write_image(birds / "wren" / "9.png")
    assert len({folder, held, changed, kept_shards(text)}) == len(MADE) == 4


class Squares:
    """Squares of 8 grey pixels a side, as bright as their class says."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        MADE.append("read")
        return np.full((8, 8), 90 * (i % 3), np.uint8), i % 3


def squares(place: str) -> dict[str, Squares]:
    return {place: Squares()}


def test_data_sets_by_dotted_path_and_in_a_stream(tmp_path, monkeypatch):
    (tmp_path / "own_pkg").mkdir()
    (tmp_path / "own_pkg" / "sets.py").write_text("from test_kept_shards import Squares, squares")
    monkeypatch.syspath_prepend(tmp_path)
    folder = kept_shards("own_pkg.sets:Squares")
    assert len(open_shards(folder / "train")) == 6
    assert kept_shards("own_pkg.sets:Squares") == folder
    assert [part.split for part in [open_shards(kept_shards("own_pkg.sets:squares:val") / "val")]] == ["val"]
    stream = kd.Stream.from_dataset(Squares(), 4, classes=["a", "b", "c"], fingerprint="1") | kd.decode()
    seen = {int(i): image for batch in stream for i, image in zip(batch.label, batch.image, strict=True)}
    assert {label: int(image.max()) for label, image in seen.items()} == {0: 0, 1: 90, 2: 180}
    assert stream.dataset.classes == ["a", "b", "c"]
    MADE.clear()
    assert len(kd.Stream.from_dataset(Squares(), 4, fingerprint="1").dataset) == 6
    assert not MADE, "a fingerprint spares even the reading"


def test_what_names_a_source_and_what_a_folder(birds, monkeypatch):
    monkeypatch.chdir(birds.parent)
    (birds.parent / "digits").mkdir()
    names = ["cifar10", f"imagefolder:{birds}", "my_pkg.data:birds", "hf:org/name"]
    assert [is_source(text) for text in names] == [True] * 4
    assert not any(map(is_source, ["digits", "shards/birds", str(birds), "hf://datasets/org/name", "s3://bucket/x"]))
