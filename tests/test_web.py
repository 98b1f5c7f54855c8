"""One file by several tries: resumed, refused where it is not what it should be, never led to a less safe place."""

from __future__ import annotations

from urllib.request import Request

import pytest
from faulty_server import serving

from kdstream.web import Failed, NotReceived, Patience, _Redirections, announced, persistently, receive

HASTY = Patience(silence=0.3, window=0.5, pace=10, tries=3, pause=0.001)
BODY = bytes(range(256)) * 200


@pytest.fixture
def server(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.bin").write_bytes(BODY)
    with serving(tmp_path / "files") as state:
        yield state


def test_a_download_goes_on_where_it_broke_off_and_tells_how_far_it_is(server, tmp_path):
    server.faults["a.bin"] = ["reset", "truncate"]
    told: list[tuple[int, int | None]] = []
    receive(f"{server.url}/a.bin", tmp_path / "part", HASTY, lambda *now: told.append(now), most=len(BODY))
    assert (tmp_path / "part").read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))
    begun = [int(asked.removeprefix("bytes=").rstrip("-")) for _, asked in server.asked if asked]
    assert begun
    assert all(begun)


def test_a_larger_file_than_there_should_be_is_refused_before_it_comes(server, tmp_path):
    with pytest.raises(NotReceived, match=rf"announces {len(BODY)} bytes, it should be 100 \(tried 3 times\)$"):
        receive(f"{server.url}/a.bin", tmp_path / "part", HASTY, most=100)
    assert not (tmp_path / "part").exists()


def test_length_and_version_are_known_without_the_file(server):
    assert announced(f"{server.url}/a.bin", HASTY) == (len(BODY), f'"{len(BODY)}"')
    with pytest.raises(NotReceived, match="404") as caught:
        announced(f"{server.url}/b.bin", HASTY)
    assert caught.value.status == 404


def test_pauses_between_tries_grow(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("kdstream.web.time.sleep", pauses.append)

    def attempt() -> None:
        raise Failed("no")

    with pytest.raises(NotReceived, match=r"^it cannot be downloaded: no \(tried 4 times\)$"):
        persistently("it", Patience(tries=4, pause=1.0), attempt)
    assert pauses == [1.0, 2.0, 4.0]


def test_from_https_to_http_is_not_followed():
    asked = Request("https://host/a.pth")
    with pytest.raises(Failed, match="from https to http"):
        _Redirections().redirect_request(asked, None, 302, "Found", {}, "http://host/a.pth")
    assert _Redirections().redirect_request(asked, None, 302, "Found", {}, "https://other/a.pth") is not None
