"""Remembered checksums: unchanged shards are read once, by one process; a changed one is noticed, a touched one not."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import pytest

from kdstream.convert.make_shards import make_shards
from kdstream.data import checksums as module
from kdstream.data import shard_set
from kdstream.data.checksums import Checksums, FileState, Stopped, cached, in_threads
from kdstream.data.index import Index
from kdstream.data.shards import open_shards
from kdstream.data.verify import verify
from kdstream.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(tmp_path) -> Path:
    make_shards("digits", tmp_path / "digits", limit=40, shard_count=4, processes=1)
    return tmp_path / "digits"


@pytest.fixture
def foreign(made, tmp_path) -> Path:
    """The same tars without what kdstream knows of them."""
    folder = tmp_path / "foreign" / "train"
    folder.mkdir(parents=True)
    for path in made.glob("train-*.tar"):
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the shards that were read from end to end, since it was cleared."""
    names: list[str] = []
    real = module.file_sha256
    monkeypatch.setattr(module, "file_sha256", lambda path, *rest: names.append(path.name) or real(path, *rest))
    return names


def message(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def other_label(shard: Path) -> None:
    """Another class for the shard's first sample; the size stays."""
    index = Index.load(next(shard.parent.glob("train.index.npz")))
    first = int((index.shard == index.shard_names.index(shard.name)).argmax())
    (offset,) = (offset for extension, offset, _ in index.members(first) if extension == "cls")
    with open(shard, "r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(b"1" if old != b"1" else b"2")


def test_a_set_just_made_is_not_read_again(made, read):
    assert len(open_shards(made / "train")) == 40
    assert read == []
    assert not list(made.glob("*.state"))


def test_a_changed_label_is_noticed(made, read):
    shard = made / "train-000002.tar"
    opened = open_shards(made / "train")
    before = shard.stat()
    other_label(shard)
    for _ in range(2):
        assert f"{shard} is damaged: its checksum differs" in message(open_shards, made / "train")
    assert read == [shard.name]  # the first time
    assert "is damaged" in message(verify, made)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "is damaged" in message(open_shards, made / "train")
    number = int((opened._index.shard == 2).argmax())
    assert f"{shard} was replaced by another while it was in use" in message(opened.read, number)
    assert len(open_shards(made / "val")) == 40


@pytest.mark.parametrize("copy", [shutil.copyfile, shutil.copy2])
def test_copied_and_touched_sets_are_read_at_most_once(made, tmp_path, read, copy):
    other = tmp_path / "other"
    shutil.copytree(made, other, copy_function=copy)
    mark = open_shards(made / "train").fingerprint
    assert open_shards(other / "train").fingerprint == mark
    assert sorted(read) == sorted(path.name for path in made.glob("train-*.tar"))
    read.clear()
    assert open_shards(other / "train").fingerprint == mark
    opened = open_shards(other / "train")
    os.utime(other / "train-000001.tar")
    assert len({opened.read(i)["__key__"] for i in range(40)}) == 40  # also of one that is in use
    assert read == []
    assert open_shards(other / "train").fingerprint == mark
    assert read == ["train-000001.tar"]


def test_where_nothing_can_be_written_every_opening_reads(made, tmp_path, read, monkeypatch):
    shutil.copytree(made, tmp_path / "other", copy_function=shutil.copyfile)

    def refuse(path, data):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(module, "write_atomic", refuse)
    for _ in range(2):
        assert len(open_shards(tmp_path / "other" / "train")) == 40
    assert len(read) == 8


def test_a_read_only_folder_is_remembered_in_the_cache(made, tmp_path, read, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(made, other, copy_function=shutil.copyfile)
    real = module.write_atomic

    def refuse(path, data):
        if path.parent == other:
            raise OSError(errno.EROFS, "Read-only file system")
        real(path, data)

    monkeypatch.setattr(module, "write_atomic", refuse)
    for _ in range(2):
        assert len(open_shards(other / "train")) == 40
    assert len(read) == 4
    assert cached(other, "train.state").is_file()


def test_a_damaged_memory_is_none(made, tmp_path, read):
    other = tmp_path / "other"
    shutil.copytree(made, other, copy_function=shutil.copyfile)
    open_shards(other / "train")
    whole = (other / "train.state").read_bytes()
    lie = json.loads(whole)
    lie["files"]["train-000000.tar"][0] = "0" * 64
    for damaged in (b"", b"[]", b"null", whole[:-20], b"[" * 100_000, json.dumps(lie).encode(), b'{"files": {"a": 3}}'):
        (other / "train.state").write_bytes(damaged)
        read.clear()
        assert len(open_shards(other / "train")) == 40
        assert len(read) == 4


def test_other_pixels_of_the_same_size_are_another_foreign_set(foreign, read):
    mark = open_shards(foreign).fingerprint
    assert len(read) == 4
    shard = foreign / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1  # within the first image
    shard.write_bytes(data)
    assert open_shards(foreign).fingerprint != mark
    data[700] ^= 1
    shard.write_bytes(data)
    read.clear()
    assert open_shards(foreign).fingerprint == mark
    assert read == [shard.name]
    for path in foreign.glob("*.tar"):
        os.utime(path)
    stamp = (foreign / "kdstream.index.npz").stat().st_mtime_ns
    assert open_shards(foreign).fingerprint == mark
    assert (foreign / "kdstream.index.npz").stat().st_mtime_ns == stamp  # touched, not indexed again
    shard.rename(foreign / "train-000000b.tar")  # the order stays
    assert open_shards(foreign).fingerprint == mark


def test_foreign_indices_of_older_versions_and_damaged_ones_are_made_anew(foreign):
    shards = open_shards(foreign)
    samples = [shards.read(i) for i in range(40)]
    (foreign / "kdstream.state").unlink()
    for name in ("kdstream.index.npz", "kdstream.index.json"):
        whole = (foreign / name).read_bytes()
        old = json.dumps({"tag": "of names and times", "count": 40, "histogram": []}).encode()
        for damaged in (whole[: len(whole) // 2], b"", old, b"[3]"):
            (foreign / name).write_bytes(damaged)
            shards = open_shards(foreign)
            assert [shards.read(i) for i in range(40)] == samples
            assert (foreign / name).read_bytes() == whole


FORK = multiprocessing.get_context("fork")  # a process that begins anew imports torch, which takes seconds


def test_of_processes_that_open_a_set_together_one_reads_it(foreign, read, monkeypatch):
    start, results = FORK.Barrier(3), FORK.SimpleQueue()
    real = module.file_sha256
    monkeypatch.setattr(module, "file_sha256", lambda path, *rest: time.sleep(0.1) or real(path, *rest))

    def work() -> None:
        start.wait()
        results.put((open_shards(foreign).fingerprint, len(read)))

    children = [FORK.Process(target=work) for _ in range(3)]
    for child in children:
        child.start()
    found = [results.get() for _ in children]
    for child in children:
        child.join()
    assert sorted(count for _, count in found) == [0, 0, 4]
    assert len({mark for mark, _ in found}) == 1


def test_what_tells_a_file_from_its_older_self():
    state = FileState(10, 5, 7, 6)
    assert state.same(FileState(10, 5, 7, 6))
    assert state.same(FileState(10, 5, 8, 9))  # a copy that kept its time
    assert not state.same(FileState(10, 5, 7, 9))  # the file itself, changed and its time put back
    assert not state.same(FileState(11, 5, 7, 6))
    assert not state.same(FileState(10, 6, 8, 6))


def test_a_file_that_is_being_written_to(tmp_path, monkeypatch):
    path = tmp_path / "0.tar"
    path.write_bytes(b"a")
    real = module.file_sha256

    def grow(path, *rest):
        with open(path, "ab") as file:
            file.write(b"b")
        return real(path, *rest)

    monkeypatch.setattr(module, "file_sha256", grow)
    assert "is being written to" in message(Checksums(tmp_path, "x.state").read, "0.tar")


def test_pipes_and_folders_are_no_shards(tmp_path):
    (tmp_path / "folder.tar").mkdir()
    os.mkfifo(tmp_path / "pipe.tar")
    for name in ("folder.tar", "pipe.tar"):
        (tmp_path / name[:4]).mkdir()
        (tmp_path / name).rename(tmp_path / name[:4] / name)
        assert "is no regular file" in message(open_shards, tmp_path / name[:4])


def test_one_failure_ends_the_work_of_all():
    stopped = threading.Event()

    def work(item: int, stop: threading.Event) -> int:
        if item == 1:
            raise UserError("broken")
        if item > 1:
            stop.wait()
            stopped.set()
            raise Stopped
        return item

    results = in_threads(work, range(1000))
    assert next(results) == 0
    with pytest.raises(UserError, match="broken"):
        next(results)
    assert stopped.is_set() or (os.cpu_count() or 1) == 1


# ---- reading while something is wrong


def failing(monkeypatch, name: str, code: int, times: int) -> None:
    """The first calls of os.NAME fail."""
    left, real = [times], getattr(os, name)

    def call(*arguments, **options):
        if left[0] > 0 and (name != "open" or str(arguments[0]).endswith(".tar")):
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(("name", "code"), [("open", errno.EMFILE), ("open", errno.ENFILE), ("pread", errno.ESTALE)])
def test_too_many_files_and_stale_handles_are_tried_once_more(made, monkeypatch, name, code):
    shards = open_shards(made / "train")
    expected = shards.read(3)
    shards = open_shards(made / "train")
    failing(monkeypatch, name, code, 1)
    assert shards.read(3) == expected
    shards = open_shards(made / "train")
    failing(monkeypatch, name, code, 2)
    text = message(shards.read, 3)
    assert ("ulimit -n" in text) == (code != errno.ESTALE)


def test_more_shards_than_open_files(tmp_path):
    """With the limit of ``ulimit -n 64``, two splits that are read in turns, and other files that are open."""
    make_shards("digits", tmp_path / "many", limit=100, shard_count=100, processes=1)
    results = FORK.SimpleQueue()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        sets = [open_shards(tmp_path / "many" / split) for split in ("train", "val")]
        taken = []
        while len(os.listdir("/proc/self/fd")) < 40:
            taken.append(os.open("/dev/null", os.O_RDONLY))
        results.put(sum(len(shards.read(i)["cls"]) for i in range(100) for shards in sets))

    child = FORK.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert results.get() == 200


def test_a_shard_replaced_by_an_equal_one_is_read_on(made, monkeypatch):
    monkeypatch.setattr(shard_set, "OPEN_FILES", 1)
    shards = open_shards(made / "train")
    expected = [shards.read(i) for i in range(40)]
    for path in made.glob("train-*.tar"):
        shutil.copyfile(path, made / "new")
        os.replace(made / "new", path)
    assert [shards.read(i) for i in range(40)] == expected
