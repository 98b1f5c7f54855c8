from __future__ import annotations

from pathlib import Path

import pytest

from kdstream.data.cache_folder import cache_folder


@pytest.mark.parametrize(("setting", "root"), [("/elsewhere/cache", "/elsewhere/cache"), ("", "HOME/.cache")])
def test_the_users_cache_folder(monkeypatch, tmp_path, setting, root):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", setting)
    found = cache_folder("index", "abc")
    assert found == Path(root.replace("HOME", str(tmp_path)), "kdstream", "index", "abc")
    assert not list(tmp_path.iterdir())


def test_without_a_setting_it_lies_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "kdstream"
