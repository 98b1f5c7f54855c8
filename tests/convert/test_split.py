"""Splits of a source: keys that WebDataset reads as they are meant, and an identity that follows the images."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from source_places import write_image
from webdataset.tariterators import base_plus_ext

from kdstream.convert.open_source import open_source
from kdstream.convert.split import ArraySplit, FileSplit, unique_keys


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


def test_identity_follows_the_files(tmp_path):
    image = write_image(tmp_path / "cat" / "1.jpg")
    first = open_source(f"imagefolder:{tmp_path}").splits["train"].identity()
    assert open_source(f"imagefolder:{tmp_path}").splits["train"].identity() == first
    os.utime(image, ns=(1, 1))
    assert open_source(f"imagefolder:{tmp_path}").splits["train"].identity() != first


@given(numbers=st.lists(st.integers(0, 5), max_size=8))
def test_a_subset_has_the_images_of_its_numbers_in_their_order(numbers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    names = [f"{i}.{end}" for i, end in enumerate(("jpg", "JPEG", "png", "jpe", "png", "jpg"))]
    for name in names:
        (folder / name).write_bytes(name.encode())
    keys, labels = [f"k{i}" for i in range(6)], [0, 1, 2, 0, 1, 2]
    files = FileSplit(str(folder), names, keys, labels, [(5, i) for i in range(6)], {4: "it is text"})
    pixels = ArraySplit(np.arange(24, dtype=np.uint8).reshape(6, 2, 2), keys, labels)
    for split in (files, pixels):
        part = split.subset(numbers)
        assert list(part) == [split[i] for i in numbers]
        assert [part.where(place) for place in range(len(part))] == [split.where(i) for i in numbers]
        assert part.refused == {place: split.refused[i] for place, i in enumerate(numbers) if i in split.refused}
        assert (part.identity() == split.identity()) == (numbers == [*range(6)])
    assert [files.extension(i) for i in range(6)] == ["jpg", "jpg", "png", "jpg", "png", "jpg"]
