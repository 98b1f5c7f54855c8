"""Opening a source by its name, by the table or by a dotted path; what is none is refused in one line."""

from __future__ import annotations

import pytest
from source_places import message

from kdstream.convert.make_shards import make_shards
from kdstream.convert.open_source import SOURCES, open_source
from kdstream.data.shards import open_shards

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
