"""Files behind addresses of every scheme: fsspec's memory stands for the stores of objects."""

from __future__ import annotations

import fsspec
import pytest

from kdstream.data.remote_file import check_address, list_tars, look, receive_file
from kdstream.errors import UserError
from kdstream.web import NotReceived, Patience

HASTY = Patience(tries=3, pause=0.001)
BODY = bytes(range(256)) * 9000
MEMORY = fsspec.filesystem("memory")


@pytest.fixture
def stored(monkeypatch):
    """A file in a store whose reads break off now and then: ``breaks`` holds at which."""
    MEMORY.pipe("/bucket/a.tar", BODY)
    MEMORY.pipe("/bucket/notes.txt", b"")
    breaks: list[int] = []
    kind = type(MEMORY.open("/bucket/a.tar"))
    read = kind.read

    def breaking(self, size=-1):
        place = self.tell()
        if breaks and place >= breaks[0]:
            breaks.pop(0)
            raise OSError("connection lost")
        return read(self, size)

    monkeypatch.setattr(kind, "read", breaking, raising=False)
    yield breaks
    MEMORY.rm("/bucket", recursive=True)


def test_a_file_of_a_store_comes_whole_though_it_breaks_off(stored, tmp_path):
    stored[:] = [1 << 20, 2 << 20]
    receive_file("memory://bucket/a.tar", tmp_path / "part", HASTY, most=len(BODY))
    assert (tmp_path / "part").read_bytes() == BODY
    assert look("memory://bucket/a.tar", HASTY)[0] == len(BODY)
    assert list_tars("memory://bucket") == ["memory:///bucket/a.tar"]


def test_what_a_store_does_not_give_is_one_line(stored, tmp_path):
    stored[:] = [0] * 10
    with pytest.raises(NotReceived, match=r"connection lost \(tried 3 times\)$"):
        receive_file("memory://bucket/a.tar", tmp_path / "part", HASTY)
    stored.clear()
    with pytest.raises(NotReceived, match=r"no such file$") as caught:
        receive_file("memory://bucket/b.tar", tmp_path / "part", HASTY)
    assert caught.value.status == 404
    with pytest.raises(NotReceived, match=r"it should be 5$"):
        receive_file("memory://bucket/a.tar", tmp_path / "part", HASTY, most=5)


@pytest.mark.parametrize(
    "address", ["ftp://h/a", "ssh://h/a", "s3://a::memory://b", "file:///etc/passwd", "github://a"]
)
def test_other_schemes_are_refused(address):
    with pytest.raises(UserError, match=r"^cannot read "):
        check_address(address)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    def missing(_):
        raise ImportError("s3fs")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UserError, match=r"^s3:// addresses need the package s3fs: pip install 'kdstream\[remote\]'$"):
        receive_file("s3://bucket/a.tar", tmp_path / "part")
