"""The cache of remote shards: limited, shared by processes, checked; nothing goes that is open."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys

import pytest
from faulty_server import serving

from kdstream.data import remote_cache, remote_file
from kdstream.data.remote_cache import NoRoom, Remote, RemoteCache, bytes_of, told_size
from kdstream.errors import UserError
from kdstream.web import NotReceived, Patience

SIZE = 1000


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_file, "PATIENCE", Patience(silence=2.0, tries=3, pause=0.001))
    (tmp_path / "files").mkdir()
    for name in "abcdef":
        (tmp_path / "files" / name).write_bytes(name.encode() * SIZE)
    with serving(tmp_path / "files") as state:
        yield state


def remote(server, name: str) -> Remote:
    return Remote(f"{server.url}/{name}", SIZE, hashlib.sha256(name.encode() * SIZE).hexdigest())


def use(cache: RemoteCache, wanted: Remote) -> bytes:
    with cache.file(wanted) as kept:
        return os.pread(kept.descriptor, 1 << 20, 0)


def test_what_was_used_least_recently_goes_and_nothing_that_is_open(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote_cache, "FRESH", 0.0)
    cache = RemoteCache(tmp_path / "cache", 3 * SIZE)
    files = {name: remote(server, name) for name in "abcdef"}
    for name in "abc":
        assert use(cache, files[name]) == name.encode() * SIZE
    use(cache, files["a"])
    use(cache, files["d"])
    assert [name for name in "abcd" if cache.has(files[name])] == ["a", "c", "d"]
    with cache.file(files["c"]), cache.file(files["a"]), cache.file(files["d"]):
        with pytest.raises(NoRoom, match="holds at most 3,000 bytes, and all that it holds is in use"):
            cache.open(files["e"], wait=0)
        assert [name for name in "abcde" if cache.has(files[name])] == ["a", "c", "d"]
    use(cache, files["e"])
    assert len([name for name in "abcde" if cache.has(files[name])]) == 3
    with pytest.raises(NoRoom, match=r"has 1,000 bytes, .* holds at most 10: set KDSTREAM_REMOTE_CACHE_SIZE"):
        use(RemoteCache(tmp_path / "small", 10), files["a"])


def test_a_file_that_was_changed_in_the_cache_is_fetched_anew(server, tmp_path):
    cache, wanted = RemoteCache(tmp_path / "cache"), remote(server, "a")
    use(cache, wanted)
    with cache.file(wanted) as kept:
        path = kept.path
    with open(path, "r+b") as file:
        file.write(b"x")
    assert use(cache, wanted) == b"a" * SIZE
    assert len(server.asked) == 2


def test_a_shard_with_another_checksum_is_fetched_twice_and_not_kept(server, tmp_path):
    cache, wanted = RemoteCache(tmp_path / "cache"), remote(server, "a")
    server.always["a"] = "corrupt"
    with pytest.raises(NotReceived, match="/a is not the file that it should be: its checksum differs"):
        use(cache, wanted)
    assert len(server.asked) == 2
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_what_a_killed_process_left_makes_room(server, tmp_path):
    cache = RemoteCache(tmp_path / "cache", 2 * SIZE)
    left = tmp_path / "cache" / ("0" * 40)
    left.mkdir(parents=True)
    (left / f"{2 * SIZE}.1.abcd.part").write_bytes(b"half")
    use(cache, remote(server, "a"))
    assert not left.exists()


def _use_all(place: str, addresses: list[Remote]) -> None:
    cache = RemoteCache(place, 3 * SIZE)
    good = all(use(cache, wanted) == wanted.address[-1:].encode() * SIZE for wanted in addresses * 5)
    sys.exit(0 if good else 1)


def test_processes_share_it(server, tmp_path):
    """Three processes go through more files than it holds, each in an order of its own."""
    files = [remote(server, name) for name in "abcdef"]
    context = multiprocessing.get_context("fork")
    orders = [files[i:] + files[:i] for i in range(3)]
    processes = [context.Process(target=_use_all, args=(tmp_path / "cache", order)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("file")) <= 3 * SIZE
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_sizes_in_words():
    assert [bytes_of(text) for text in ("200GB", "1.5 TB", "2MiB", "17")] == [200 * 10**9, 15 * 10**11, 1 << 21, 17]
    assert told_size(26_300_000_000) == "26.3 GB"
    with pytest.raises(UserError, match="KDSTREAM_REMOTE_CACHE_SIZE is 'much': write a size"):
        bytes_of("much")


def test_the_environment_says_where_and_how_much(monkeypatch, tmp_path):
    monkeypatch.setenv("KDSTREAM_REMOTE_CACHE", str(tmp_path))
    monkeypatch.setenv("KDSTREAM_REMOTE_CACHE_SIZE", "5kB")
    assert RemoteCache.of_this_machine() == RemoteCache(tmp_path, 5000)
