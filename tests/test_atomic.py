"""Files are the old one or the new one; what a killed process left goes; and an error of the disk says what to do."""

from __future__ import annotations

import errno
import os

import pytest

from kdstream import atomic
from kdstream.atomic import advice, remove_parts, write_atomic, writing
from kdstream.errors import DiskError


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, fails):
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, fails, full)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(path, b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.json", b"old")]
    write_atomic(path, b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.json", b"new")]


@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.EACCES, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_synced_is_no_error_and_one_that_fails_is(tmp_path, monkeypatch, number, raised):
    real = os.open

    def refused(path, *rest, **more):
        if path == tmp_path:
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **more)

    monkeypatch.setattr(atomic.os, "open", refused)
    if raised:
        with pytest.raises(OSError, match=os.strerror(number)):
            write_atomic(tmp_path / "a", b"new")
    else:
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_only_parts_of_the_named_files_are_removed(tmp_path):
    gone = ["last.pt.part", "last.pt.123.tmp", "a+b.json.9.tmp"]
    kept = ["last.pt", "best.pt.part", "last.pt.tmp", "last.pt.x.tmp", "my.last.pt.part", "aab.json.9.tmp"]
    for name in gone + kept:
        (tmp_path / name).write_bytes(b"")
    remove_parts(tmp_path, ["last.pt", "a+b.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_parts(tmp_path / "nowhere", ["last.pt"])


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "make room, then the same command continues"),
        (errno.EROFS, "allow writing there, then the same command continues"),
        (errno.ENOTDIR, "was its folder removed or renamed meanwhile? put it back"),
        (errno.EIO, "see to the disk, then the same command continues"),
        (None, "see to the disk"),
    ],
)
def test_an_error_of_writing_names_the_file_the_reason_and_what_to_do(tmp_path, number, says):
    error = OSError(number, "it\nfailed") if number else OSError("it\nfailed")
    assert advice(error).startswith(says)
    with pytest.raises(DiskError) as caught, writing(tmp_path / "outer"), writing(tmp_path / "inner"):
        raise error
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'inner'}: ")
    assert says in str(caught.value)
    assert caught.value.errno == number
