"""Spooled images: each by its number, named by content, gone with the last who reads them."""

from __future__ import annotations

import gc
import pickle

import pytest

from kdstream.convert.spooled import Given, Spool


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kdstream" / "spool"


def given(*texts: bytes) -> list[Given]:
    return [Given(("a.b", str(i)), text, "png", i % 2) for i, text in enumerate(texts)]


def test_images_by_number_also_of_a_part_and_in_another_process(cache):
    split = Spool().take("train", given(b"one", b"", b"three"))
    part = split.subset([2, 0])
    assert [item.data for item in split] == [b"one", b"", b"three"]
    assert [(item.key, item.data, item.label) for item in part] == [("a_b/2", b"three", 0), ("a_b/0", b"one", 0)]
    assert (split.nbytes(), part.nbytes(), part.subset([0])[0].data) == (8, 8, b"three")
    del split
    gc.collect()
    assert pickle.loads(pickle.dumps(part))[1].data == b"one", "the part keeps the file"
    del part
    gc.collect()
    assert not list(cache.iterdir())


def test_identities_tell_contents_and_parts_apart():
    spool = Spool()
    split = spool.take("a", given(b"one", b"two"))
    same = Spool().take("b", given(b"one", b"two"))
    assert split.identity() == same.identity()
    others = [spool.take("c", given(b"on", b"etwo")), split.subset([0]), split.subset([1, 0])]
    assert len({split.identity(), *(other.identity() for other in others)}) == 4
