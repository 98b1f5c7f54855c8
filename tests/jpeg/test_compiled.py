"""compiled: a kernel works without its cache on disk."""

from __future__ import annotations

from numba import int64
from numba.core import caching

from kdstream.jpeg.compiled import compiled


def plus_one(x):
    return x + 1


def test_no_folder_for_the_cache(monkeypatch):
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert compiled(plus_one, (int64,))(41) == 42


def test_cache_that_cannot_be_written(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "save", full)
    monkeypatch.setattr(caching.IndexDataCacheFile, "load", lambda *_: None)
    assert compiled(plus_one, (int64,))(41) == 42
