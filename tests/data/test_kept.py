"""What is remembered beside shards goes to the cache where the folder cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdstream.data.kept import store
from kdstream.errors import UserError


def test_index_goes_to_the_cache_where_the_folder_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")  # writing below a file fails for every user, also for root
    saved = []

    def save(path: Path) -> None:
        path.write_bytes(b"index")
        saved.append(path)

    place = store("x.npz", save, (blocked, tmp_path / "cache" / "deep"))
    assert saved == [place] == [tmp_path / "cache" / "deep" / "x.npz"]
    with pytest.raises(UserError, match="cannot store the index"):
        store("x.npz", save, (blocked, blocked / "deeper"))
