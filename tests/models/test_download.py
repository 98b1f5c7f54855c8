"""Downloads from servers that are slow, silent, wrong or hostile: one line soon, nothing kept; and no secret shown."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdstream.errors import UserError
from kdstream.models.download import Patience, cached, fetch

HASTY = Patience(silence=0.2, window=0.3, pace=1000, tries=2, pause=0.01, lock=0.3)


BODY = bytes(range(256)) * 40


DIGEST = hashlib.sha256(BODY).hexdigest()


def read(path: Path, _name: str) -> bytes:
    return path.read_bytes()


class _Handler(BaseHTTPRequestHandler):
    """Does what the first part of the path says; notes every request in the server's ``asked``."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Nothing: it is a test."""

    def do_GET(self):
        name = self.path.split("/")[1]
        self.server.asked.append((self.path, dict(self.headers)))
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the other side has had enough
            getattr(self, name.replace("-", "_"))()

    def head(self, code=200, length=None, **headers):
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def count(self):
        return sum(path == self.path for path, _ in self.server.asked)

    def good(self):
        self.head(length=len(BODY))
        self.wfile.write(BODY)

    def unannounced(self):
        self.head()
        self.wfile.write(BODY)

    def keeps_open(self):
        self.good()
        self.wfile.flush()
        self.server.closing.wait(5)

    def chunked(self):
        self.head(Transfer_Encoding="chunked")
        for part in (BODY[:1000], BODY[1000:]):
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunked_in_part(self):
        self.head(Transfer_Encoding="chunked")
        self.wfile.write(b"400\r\nabc")

    def silent(self):
        self.server.closing.wait(5)

    def silent_in_the_middle(self):
        self.head(length=len(BODY))
        self.wfile.write(BODY[:5000])
        self.wfile.flush()
        self.server.closing.wait(5)

    def drips_headers(self):
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: yes\r\n" * 50:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.closing.wait(0.05):
                return

    def drips(self):
        self.head(length=len(BODY))
        for byte in BODY:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.closing.wait(0.02):
                return

    def short(self):
        self.head(length=len(BODY) + 1)
        self.wfile.write(BODY)

    def long(self):
        self.head(length=len(BODY) - 1)
        self.wfile.write(BODY)

    def empty_said_but_full(self):
        self.head(length=0)
        self.wfile.write(BODY)

    def length_is_a_word(self):
        self.head(length="many")
        self.wfile.write(BODY)

    def length_is_negative(self):
        self.head(length=-5)
        self.wfile.write(BODY)

    def two_lengths(self):
        self.send_response(200)
        for length in (len(BODY), 5):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(BODY)

    def fills_the_disk(self):
        self.head(length=10**17)

    def no_http(self):
        self.wfile.write(b"220 welcome to FTP\r\n")

    def absent(self):
        self.head(404, 0)

    def busy_once(self):
        if self.count() == 1:
            self.head(503, 0)
        else:
            self.good()

    def always_busy(self):
        self.head(503, 0)

    def breaks_once(self):
        """In two pieces, with a tag by which the second try continues."""
        if self.count() == 1:
            self.head(length=len(BODY), ETag='"v1"')
            self.wfile.write(BODY[:4000])
        elif self.headers.get("If-Range") == '"v1"':
            begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            rest = BODY[begin:]
            self.head(206, len(rest), Content_Range=f"bytes {begin}-{len(BODY) - 1}/{len(BODY)}")
            self.wfile.write(rest)

    def changes(self):
        """Breaks off, and has another file when it is asked for the rest."""
        if self.count() == 1:
            self.head(length=len(BODY), ETag='"v1"')
            self.wfile.write(b"old" * 1000)
        else:
            self.good()

    def continues_elsewhere(self):
        if "Range" in self.headers:
            self.head(206, 10, Content_Range=f"bytes 7-16/{len(BODY)}")
            self.wfile.write(BODY[:10])
        else:
            self.head(length=len(BODY), ETag='"v1"')
            self.wfile.write(BODY[:4000])

    def to_good(self):
        self.head(302, 0, Location="/good/weights.pth")

    def to_file(self):
        self.head(302, 0, Location="file:///etc/passwd")

    def to_ftp(self):
        self.head(302, 0, Location="ftp://127.0.0.1/x.pth?token=SECRET")

    def to_itself(self):
        self.head(302, 0, Location=self.path)

    def to_another_host(self):
        self.head(302, 0, Location=f"http://localhost:{self.server.server_port}/good/weights.pth")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """``url(name)`` is an address that does what the name says; ``asked`` holds (path, headers) of all requests."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.asked, server.closing = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    place = f"http://127.0.0.1:{server.server_port}"
    yield SimpleNamespace(url=lambda name: f"{place}/{name}/weights.pth", asked=server.asked, place=place)
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


def kept() -> list[str]:
    """Files in torch.hub's folder that are no locks."""
    return sorted(path.name for path in (Path(torch.hub.get_dir()) / "checkpoints").glob("*") if path.suffix != ".lock")


@pytest.mark.parametrize("name", ["good", "unannounced", "chunked", "keeps-open", "busy-once", "to-good"])
def test_what_arrives_whole_is_kept(server, name):
    url = server.url(name)
    assert fetch(url, read, HASTY) == BODY
    before = len(server.asked)
    assert fetch(url, read, HASTY) == BODY
    assert len(server.asked) == before
    assert kept() == [cached(url).name]


@pytest.mark.parametrize(
    ("name", "message", "tries"),
    [
        ("silent", r"no answer for 0\.2 s \(tried 2 times\)", 2),
        ("silent-in-the-middle", r"no answer for 0\.2 s", 2),
        ("drips-headers", r"no answer for 0\.2 s", 2),
        ("drips", r"only \d+ bytes came in 0\.3 s", 2),
        ("short", rf"it ends after {len(BODY)} of {len(BODY) + 1} bytes", 2),
        ("long", rf"the server sends more than the {len(BODY) - 1} bytes that it announces", 2),
        ("empty-said-but-full", r"the server sends more than the 0 bytes", 2),
        ("chunked-in-part", r"its answer breaks off or is no HTTP", 2),
        ("length-is-a-word", r"announces a length that is no number", 1),
        ("length-is-negative", r"announces a length that is no number", 1),
        ("two-lengths", r"announces a length that is no number", 1),
        ("no-http", r"its answer breaks off or is no HTTP", 2),
        ("absent", r"the server answers 404 Not Found$", 1),
        ("always-busy", r"the server answers 503 Service Unavailable \(tried 2 times\)", 2),
        ("to-file", r"it redirects in a circle or to no address \(302\)", 1),
        ("to-ftp", r"it redirects from http to ftp, which is not followed", 1),
        ("to-itself", r"it redirects in a circle", None),
        ("continues-elsewhere", r"the server continues at another place", 2),
    ],
)
def test_what_does_not_arrive_is_said_in_a_line_and_not_kept(server, name, message, tries):
    url = server.url(name)
    with pytest.raises(UserError, match=rf"^{url} cannot be downloaded: .*{message}") as caught:
        fetch(url, read, HASTY)
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert tries is None or len(server.asked) == tries
    assert kept() == []


def test_more_than_the_disk_holds(server):
    with pytest.raises(UserError, match=r"cannot be kept in .*: the file has 100,000,.* bytes, there is less room"):
        fetch(server.url("fills-the-disk"), read, HASTY)
    assert kept() == []


def test_a_further_try_continues_where_the_server_can(server):
    assert fetch(server.url("breaks-once"), read, HASTY) == BODY
    first, second = (headers for _, headers in server.asked)
    assert "Range" not in first
    assert second["Range"] == "bytes=4000-"


def test_a_further_try_does_not_join_two_files(server):
    assert fetch(server.url("changes"), read, HASTY) == BODY


def test_user_and_password_go_to_their_own_host_only(server):
    secret = "Basic " + base64.b64encode(b"me:pa@ss").decode()
    for name in ("good", "to-good", "to-another-host"):
        assert fetch(server.url(name).replace("//", "//me:pa%40ss@"), read, HASTY) == BODY
    sent = [(path.split("/")[1], headers.get("Authorization")) for path, headers in server.asked]
    assert sent == [
        ("good", secret),
        ("to-good", secret),
        ("good", secret),
        ("to-another-host", secret),
        ("good", None),
    ]


def test_the_query_is_sent_and_nowhere_shown(server):
    url = server.url("absent") + "?token=SECRET&odd=a b"
    with pytest.raises(UserError, match="404") as caught:
        fetch(url, read, HASTY)
    assert server.asked[0][0] == "/absent/weights.pth?token=SECRET&odd=a%20b"
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in str(cached(url))
    good = server.url("good").replace("//", "//me:SECRET@") + "?SECRET"
    assert fetch(good, lambda _path, name: name, HASTY) == server.url("good")
    assert not any("SECRET" in name for name in kept())


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        (f"net-{DIGEST[:8]}.pth", True),
        (f"net-{DIGEST[:20]}.th", True),
        ("net-0123abcd.pth", False),
        ("net-20240131.pth", True),  # a date
        ("net-abcdef.pth", True),  # too short for a hash
        ("net-vit.pth", True),
    ],
)
def test_a_hash_in_the_name_is_checked(server, name, fits):
    url = f"{server.place}/good/{name}"
    if fits:
        assert fetch(url, read, HASTY) == BODY
        return
    with pytest.raises(UserError, match=rf"is not the file that its name says: .*{DIGEST[:8]}, not 0123abcd"):
        fetch(url, read, HASTY)
    assert kept() == []


def test_what_the_reader_refuses_is_not_kept(server):
    def refuse(_path, name):
        raise UserError(f"{name} is nothing")

    with pytest.raises(UserError, match=r"is nothing$"):
        fetch(server.url("good"), refuse, HASTY)
    assert kept() == []
    assert fetch(server.url("good"), read, HASTY) == BODY
    with pytest.raises(UserError, match=r"is nothing \(it is /.*, from an earlier download: delete that"):
        fetch(server.url("good"), refuse, HASTY)


def test_several_at_a_time_download_once(server):
    url, answers = server.url("good"), []
    threads = [threading.Thread(target=lambda: answers.append(fetch(url, read, HASTY))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [BODY] * 4
    assert len(server.asked) == 1


HOLD = """
import os, sys, time
from filelock import FileLock
FileLock(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("killed", [True, False])
def test_a_lock_does_not_outlast_its_process_nor_hold_others_for_ever(server, killed):
    url = server.url("good")
    path = cached(url)
    path.parent.mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, f"{path}.lock"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        if killed:
            holder.kill()
            holder.wait()
        assert fetch(url, read, HASTY) == BODY  # a holder that lives but makes no progress is not waited for long
    finally:
        holder.kill()
        holder.communicate()
    assert kept() == [path.name]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks(server, monkeypatch, code):
    fcntl = pytest.importorskip("fcntl", reason="Windows locks otherwise")

    def without(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", without)
    assert fetch(server.url("good"), read, HASTY) == BODY
    assert cached(server.url("good")).read_bytes() == BODY


def test_what_an_earlier_process_left_is_not_taken_for_the_file(server):
    url = server.url("good")
    part = cached(url).with_name(f"{cached(url).name}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 20000)
    assert fetch(url, read, HASTY) == BODY
    assert not part.exists()


def test_nobody_listens(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.pth"
    with pytest.raises(UserError, match=r"cannot be downloaded: Connection refused \(tried 2 times\)"):
        fetch(url, read, HASTY)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/a.pth?k=SECRET", r"^ftp://host/a\.pth: only http:// and https://"),
        ("file:///etc/passwd", "only http:// and https://"),
        ("http://host/?k=SECRET", "^http://host/ names no file"),
        ("http:///a.pth", "only http:// and https://"),
        ("http://[::1/a.pth", "is no address that can be read"),
        ("http://me:SECRET@host:port/a.pth", "is no address that can be read"),
        ("http://me:SEC/RET@host/a.pth", "no address that can be read"),
    ],
)
def test_addresses_that_are_none(url, message):
    with pytest.raises(UserError, match=message) as caught:
        cached(url)
    assert "SEC" not in str(caught.value)


def test_names_in_the_cache_are_those_of_before(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = "https://host.org/a/ckpt_epoch_240.pth"
    assert cached(url).name == f"ckpt_epoch_240.{hashlib.sha256(url.encode()).hexdigest()[:12]}.pth"
    assert cached("https://download.pytorch.org/models/resnet18-f37072fd.pth").name == "resnet18-f37072fd.pth"
    assert cached(url) == cached(url.replace("//", "//me:secret@"))
    assert cached(url) != cached(f"{url}?id=2")
