"""kept_rows: rows of several bytes, in the order of the samples; what has no room is not begun. Plans test the rest."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from test_coding_plan import Numbers

from kdstream.errors import UserError
from kdstream.stream.kept_rows import Kind, make_kept, read_kept
from kdstream.stream.plan import Plan

KIND = Kind("list of pairs", "pairs", "pairs=auto", "pairs=off")
LAYOUT = Plan(1100, 512, shuffle=False)


def pairs(chunks):
    for chunk in chunks:
        index = LAYOUT.batch(0, chunk)
        yield torch.stack([index % 256, index // 256], 1).to(torch.uint8).numpy().tobytes()


def test_rows_of_several_bytes(tmp_path, capsys):
    data = Numbers(tmp_path, 1100)
    path = make_kept(data, "a.bin", {"of": "a"}, LAYOUT, 2, pairs, KIND, told="2 bytes each")
    assert "2 bytes each" in capsys.readouterr().err
    rows = read_kept(path, {"of": "a"}, 1100, 2, KIND).long()
    assert (rows[:, 0] + 256 * rows[:, 1]).equal(torch.arange(1100))
    assert make_kept(data, "a.bin", {"of": "a"}, LAYOUT, 2, None, KIND, told="2 bytes each") == path
    assert "2 bytes" not in capsys.readouterr().err, "it is there"
    with pytest.raises(UserError, match=r"list of pairs .*a\.bin is damaged: delete it, and pairs=auto makes it again"):
        read_kept(path, {"of": "a"}, 1100, 3, KIND)
    with pytest.raises(UserError, match="was made for of a, not b: use pairs=auto"):
        read_kept(path, {"of": "b"}, 1100, 2, KIND)


def test_what_has_no_room_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4399))
    asked = []
    with pytest.raises(UserError, match=r"the list of pairs takes 0 MiB in .* and 0 MiB are free: make room, or use"):
        make_kept(Numbers(tmp_path, 1100), "a.bin", {}, LAYOUT, 2, asked.append, KIND)
    assert not asked
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4400))  # the chunks and the whole
    assert make_kept(Numbers(tmp_path, 1100), "a.bin", {}, LAYOUT, 2, pairs, KIND).stat().st_size == 2200
