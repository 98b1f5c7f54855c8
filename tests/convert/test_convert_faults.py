"""A conversion whose disk fails at any one point ends with one line, and the same command goes on to the same bytes."""

from __future__ import annotations

import builtins
import contextlib
import errno
import filecmp
import io
import multiprocessing
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from image_bytes import encoded
from PIL import Image

from kdstream.convert.make_shards import make_shards
from kdstream.data.verify import verify
from kdstream.errors import UserError

EVERY = bool(os.environ.get("KDSTREAM_ALL_FAULTS"))
"""Set it to try all points, not a sample of them."""
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)


class Faults:
    """Counts what is asked of the disk below a folder; from call ``at`` on, ``length`` calls fail with ``error``."""

    def __init__(self, folder: Path, monkeypatch, at: int = -1, length: int = 1, error: int = 0):
        self.folder, self.at, self.length, self.error = str(folder), at, length, error
        self.calls = multiprocessing.Value("q", 0)  # the workers count as well
        self.hit = multiprocessing.Value("q", 0)
        faults = self

        class Raw(io.FileIO):
            def write(self, data):
                faults.pass_("write")
                return super().write(data)

        real_open = io.open

        def open_(file, mode="r", buffering=-1, *rest, **more):
            if isinstance(file, int) or not self.mine(file):
                return real_open(file, mode, buffering, *rest, **more)
            self.pass_("open")
            if "w" in mode and "b" in mode:
                return io.BufferedWriter(Raw(file, mode.replace("b", "")), max(buffering, 512))
            return real_open(file, mode, buffering, *rest, **more)

        monkeypatch.setattr(builtins, "open", open_)
        monkeypatch.setattr(io, "open", open_)
        for name in ("open", "mkdir", "replace", "unlink", "rmdir", "scandir"):
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))
        real_sync = os.fsync

        def sync(descriptor):
            self.pass_("fsync")
            return real_sync(descriptor)

        monkeypatch.setattr(os, "fsync", sync)

    def mine(self, path) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)

    def pass_(self, what: str) -> None:
        with self.calls.get_lock():
            number = self.calls.value
            self.calls.value += 1
        if self.at <= number < self.at + self.length and self.at >= 0:
            self.hit.value = 1
            raise OSError(self.error, os.strerror(self.error), what)

    def wrapped(self, name, function):
        def call(path, *rest, **more):
            if self.mine(path) or "dir_fd" in more:
                self.pass_(name)
            return function(path, *rest, **more)

        return call


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
                (root / split / name / f"{i}.png").write_bytes(encoded(Image.fromarray(pixels), "PNG"))
    return root


@pytest.fixture(scope="module")
def reference(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "set"
    convert(source, folder)
    return folder


def convert(source: Path, folder: Path, processes: int = 1, **more):
    return make_shards(f"imagefolder:{source}", folder, shard_count=3, processes=processes, **more)


def assert_whole(folder: Path, reference: Path, finished: bool) -> None:
    """Whatever stands under a final name has the bytes that it is to have; when finished, all and nothing else does."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    wanted = {path.name for path in reference.iterdir()}
    for name in names - {".making"}:
        assert not name.endswith(".tmp") or not finished
        if not name.endswith(".tmp"):
            assert filecmp.cmp(folder / name, reference / name, shallow=False), name
    assert not finished or names - {".making"} == wanted


@pytest.mark.parametrize("processes", [1, 2])
def test_the_disk_fails_at_any_point(source, reference, tmp_path, monkeypatch, processes):
    with monkeypatch.context() as patch:
        counting = Faults(tmp_path, patch)
        convert(source, tmp_path / "counted", processes)
        points = counting.calls.value
    assert_whole(tmp_path / "counted", reference, True)
    assert points > 100
    told = []
    for at in range(points) if EVERY else range(processes, points, 9 if processes == 1 else 29):
        length, error = (1, 10**6)[at % 2], ERRORS[at % len(ERRORS)]
        folder = tmp_path / f"set{at}"
        with monkeypatch.context() as patch:
            faults = Faults(folder, patch, at, length, error)
            try:
                convert(source, folder, processes)
            except UserError as failed:
                told.append((at, str(failed), os.strerror(error) in str(failed)))
            assert faults.hit.value or processes == 2, at
        assert_whole(folder, reference, (folder / "dataset.json").exists())
        with contextlib.suppress(UserError):  # it was finished, and only its work folder could not be removed
            convert(source, folder, processes)
        assert_whole(folder, reference, True)
        verify(folder)
    assert len(told) > 3
    assert [line for line in told if "\n" in line[1] or not line[2]] == []


def test_few_open_files_are_enough(source, reference, tmp_path):
    """As after ``ulimit -n``: and where not even one more can be opened, that is no fault of the image."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 24, hard))
        convert(source, tmp_path / "set", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_whole(tmp_path / "set", reference, True)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EIO, errno.ENOMEM])
def test_a_failing_system_is_no_unreadable_image(source, reference, tmp_path, monkeypatch, error):
    """--on-error skip leaves out damaged files, not those that could not be read just then."""
    with monkeypatch.context() as patch:
        from kdstream.convert.split import FileSplit

        real = FileSplit.load

        def load(self, i):
            if self.names[i] == "cat/3.png":
                raise OSError(error, os.strerror(error))
            return real(self, i)

        patch.setattr(FileSplit, "load", load)
        with pytest.raises(UserError, match=os.strerror(error)):
            convert(source, tmp_path / "set", on_error="skip")
    convert(source, tmp_path / "set", on_error="stop")
    assert len(list((tmp_path / "set").glob("*.tar"))) == 6
    assert not any(filecmp.cmpfiles(reference, tmp_path / "set", [p.name for p in reference.glob("*.tar")], False)[1:])


@pytest.mark.parametrize("failure", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_file_systems_without_locks(source, reference, tmp_path, monkeypatch, failure):
    from kdstream.convert import make_shards as module

    class NoLock(module.FileLock):
        def acquire(self, *rest, **more):
            raise failure

    monkeypatch.setattr(module, "FileLock", NoLock)
    convert(source, tmp_path / "set")
    assert_whole(tmp_path / "set", reference, True)
