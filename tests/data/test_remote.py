"""Splits behind addresses: the same samples as those of the folder, whatever the server does; else one line."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
from faulty_server import PASSING, serving
from tars import message

from kdstream.data import remote_file
from kdstream.data.remote import parent
from kdstream.data.shards import has_split, open_shards, split_of
from kdstream.errors import UserError
from kdstream.web import Patience

HASTY = Patience(silence=0.2, window=0.5, pace=10, tries=4, pause=0.001)


@pytest.fixture
def server(copy, tmp_path, monkeypatch):
    """The data set ``pets`` behind an address; a cache of its own."""
    monkeypatch.setattr(remote_file, "PATIENCE", HASTY)
    monkeypatch.setenv("KDSTREAM_REMOTE_CACHE", str(tmp_path / "cache"))
    with serving(copy) as state:
        yield state


def samples(place: str | Path) -> list[tuple]:
    shards = open_shards(place)
    every = [shards.read(i) for i in range(len(shards))]
    return [tuple((name, value) for name, value in one.items() if name != "__url__") for one in every]


@pytest.mark.parametrize("resumes", [True, False])
def test_no_sample_is_lost_or_doubled_by_faults_that_pass(server, copy, resumes):
    server.resumes = resumes
    draw = random.Random(resumes)
    for path in copy.iterdir():
        server.faults[path.name] = draw.sample(PASSING, 3)
    assert samples(f"{server.url}/train") == samples(copy / "train")
    assert not [name for name, left in server.faults.items() if left and "train" in name]


def test_it_is_the_same_set_as_the_folder(server, copy):
    far, near = open_shards(f"{server.url}/train"), open_shards(copy / "train")
    assert (far.fingerprint, far.classes, far.mean) == (near.fingerprint, near.classes, near.mean)
    assert far.key(3) == near.key(3)
    assert "3 remote shards" in far.notes[0]
    again = pickle.loads(pickle.dumps(far))
    assert (
        again.read(0)["__url__"]
        == far.read(0)["__url__"]
        == f"{server.url}/{open_shards(copy / 'train').read(0)['__url__'].rpartition('/')[2]}"
    )
    assert has_split(server.url, "val")
    assert not has_split(server.url, "test")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("short", r"the server announces \d+ bytes, it should be \d+ \(tried 4"),
        ("stall", r"no answer for 0\.2 s"),
        ("to a file", "redirects"),
        ("corrupt", "its checksum differs from that in dataset.json"),
        ("busy", r"503 Service Unavailable \(tried 4 times\)"),
    ],
)
def test_what_does_not_pass_is_one_line_and_nothing_is_kept(server, copy, fault, said):
    shard = open_shards(copy / "train").read(0)["__url__"].rpartition("/")[2]
    far = open_shards(f"{server.url}/train")
    server.always[shard] = fault
    with pytest.raises(UserError, match=said) as caught:
        far.read(0)
    assert "\n" not in str(caught.value)
    assert shard in str(caught.value)
    del server.always[shard]
    assert far.read(0)["__key__"] == far.key(0)


def test_places_without_a_set(server, copy, tmp_path):
    assert "no data set at " in message(f"{server.url}/none/train")
    assert "has no split 'test': found train, val" in message(f"{server.url}/test")
    assert "names no split" in message("https://host")
    index = next(copy.glob("train*.npz"))
    data = index.read_bytes()
    index.write_bytes(data[:-50])
    assert f"index {server.url}/" in message(f"{server.url}/train")
    index.unlink()
    assert "belongs beside dataset.json" in message(f"{server.url}/train")
    (copy / "dataset.json").write_text("{")
    said = message(f"{server.url}/train")
    assert f"{server.url}/dataset.json is damaged" in said
    assert str(tmp_path) not in said


def test_a_server_that_is_gone_is_not_missed_where_all_is_there(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_file, "PATIENCE", Patience(silence=0.2, tries=1))
    monkeypatch.setenv("KDSTREAM_REMOTE_CACHE", str(tmp_path / "cache"))
    with serving(copy) as server:
        before = samples(f"{server.url}/train")
    assert samples(f"{server.url}/train") == before
    assert "what was there before is used" in open_shards(f"{server.url}/train").notes[0]


def test_a_cache_that_is_too_small_for_the_split_is_told(server, monkeypatch):
    monkeypatch.setenv("KDSTREAM_REMOTE_CACHE_SIZE", "10kB")
    assert "touches all shards again and again" in open_shards(f"{server.url}/train").notes[-1]


def test_addresses_of_splits():
    assert split_of("https://me:pw@host/birds?key=1", "train") == "https://me:pw@host/birds/train?key=1"
    assert parent("https://me:pw@host/birds/train?key=1") == ("https://me:pw@host/birds?key=1", "train")
    assert parent("s3://bucket/train") == ("s3://bucket", "train")
    assert split_of("shards/birds", "train") == "shards/birds/train"
