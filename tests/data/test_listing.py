"""Shards by their names alone: what they hold, and the line for what they do not."""

from __future__ import annotations

import pickle

import fsspec
import pytest
from faulty_server import serving
from tars import message

from kdstream.data.listing import Listing, open_listing, open_to_go_through
from kdstream.data.shards import open_shards


def every(listing: Listing) -> list[tuple]:
    shards = range(len(listing.shard_places))
    read = [listing.read(number) for shard in shards for number in listing.numbers(shard)]
    return [tuple((name, value) for name, value in one.items() if name not in ("__url__", "index")) for one in read]


@pytest.fixture
def near(made, tmp_path, monkeypatch):
    """The samples of the folder."""
    monkeypatch.setenv("KDSTREAM_REMOTE_CACHE", str(tmp_path / "cache"))
    shards = open_shards(made / "train")
    read = [shards.read(number) for number in range(len(shards))]
    return [tuple((name, value) for name, value in one.items() if name not in ("__url__", "index")) for one in read]


def test_they_hold_what_the_index_says(made, near):
    local = open_listing(f"{made}/train-{{000000..000002}}.tar")
    assert every(local) == near
    assert every(pickle.loads(pickle.dumps(local))) == near
    store = fsspec.filesystem("memory")
    for path in made.glob("train*.tar"):
        store.pipe(f"/pets/{path.name}", path.read_bytes())
    assert every(open_to_go_through("memory://pets")) == near
    store.rm("/pets", recursive=True)
    with serving(made) as server:
        far = open_listing(f"{server.url}/train-{{000000..000002}}.tar")
        assert every(far) == near
        assert far.read(far.numbers(1)[0])["index"] == 1 << 32
        far.prefetch(2)
        assert [name for name, _ in server.asked].count("train-000002.tar") <= 3


def test_texts_that_name_no_shards(made, tmp_path):
    assert "names a shard twice" in message(f"{made}/{{a,a}}.tar", open_listing)
    assert "names more than" in message("https://host/{0..99999999}.tar", open_listing)
    assert "names more than" in message("/data/" + "{a,b}" * 40 + ".tar", open_listing)
    assert "name them, as in" in message("https://host/birds", open_listing)
    assert "no shards at" in message(str(tmp_path), open_listing)
    assert "cannot read pipe" in message("pipe://cat a.tar", open_listing)
    assert "cannot read shard" in message(f"{made}/none-{{0..1}}.tar", lambda text: open_listing(text).numbers(0))
