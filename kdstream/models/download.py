"""Files behind http(s) addresses, kept in torch.hub's folder: whole or not at all, and never waited for without end."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import re
import secrets
import shutil
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar
from urllib import request as urllib_request
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress

from kdstream.addresses import is_url as is_url
from kdstream.addresses import public
from kdstream.bars import progress_bars
from kdstream.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """What a download puts up with.

    Attributes:
        silence: seconds without any answer: for the connection, between two pieces; twice as many for the headers.
        window, pace: in each window of so many seconds, so many bytes must come.
        tries: how often it is begun, after failures that may pass.
        pause: seconds before the second try, twice as many before each further one.
        lock: seconds for which another process that downloads the same may make no progress.
    """

    silence: float = 15.0
    window: float = 60.0
    pace: int = 64 << 10
    tries: int = 3
    pause: float = 1.0
    lock: float = 120.0


PATIENCE = Patience()


class Unavailable(UserError):
    """An address does not give what it is named for: nothing, or something else."""


_PIECE = 1 << 20


def fetch(url: str, read: Callable[[Path, str], T], patience: Patience | None = None) -> T:
    """What ``read(path, name)`` makes of a file, which is downloaded if torch.hub's folder does not have it.

    A download that ``read`` refuses is not kept, nor one that is shorter or longer than announced, nor one whose name
    carries the beginning of its SHA-256 as torch.hub's do (``name-0123abcd.pth``) and that has another. Several
    processes download once. User and password in the address are sent as basic authentication, to its host alone.

    Args:
        url: of scheme http or https; redirections lead to these alone, and not from https to http.
        read: gets the file and what messages are to call it: the address without what gives access to it.
        patience: default :data:`PATIENCE`.

    Raises:
        Unavailable: no such file, no connection, an answer that does not come, is not what it says, or is refused by
            ``read``.
        UserError: another scheme; a folder that cannot be written to; what ``read`` says of an earlier download.
    """
    path, shown, patience = cached(url), public(url), patience or PATIENCE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path, patience) as locked:
            if not path.exists():
                # Without a lock, each process has a file of its own.
                part = path.with_name(f"{path.name}.{'' if locked else secrets.token_hex(4) + '.'}part")
                try:
                    try:
                        _receive(url, part, patience)
                        answer = read(part, shown)
                    except UserError as error:
                        raise Unavailable(str(error)) from error
                    os.replace(part, path)
                finally:
                    part.unlink(missing_ok=True)
                return answer
    except OSError as error:
        raise UserError(f"{shown}: cannot be kept in {path.parent}: {error.strerror or error}") from error
    try:
        return read(path, shown)
    except UserError as error:
        raise UserError(f"{error} (it is {path}, from an earlier download: delete that to download it anew)") from error


def cached(url: str) -> Path:
    """Where the file of this address is kept: ``checkpoints/NAME.DIGEST.SUFFIX`` in torch.hub's folder.

    The digest of the address (without user and password) tells the many files apart that are called the same
    (``ckpt_epoch_240.pth``). Names of PyTorch's own server stay as they are, so that its files are shared with
    torchvision.

    Raises:
        UserError: an address that is not http or https, or without a file name, or that is none.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UserError(f"{public(url)} is no address that can be read; write https://host/name.pth") from None
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(
            f"{public(url)}: only http:// and https:// addresses can be downloaded; give a local file otherwise"
        )
    name = PurePosixPath(re.sub(r"[^\w.=+-]", "_", unquote(parts.path).rpartition("/")[2]))
    if not name.stem.strip("."):
        raise UserError(f"{public(url)} names no file: give the address of a file of weights")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if host == "download.pytorch.org":
        return folder / name
    plain = url.replace(f"{parts.netloc}", parts.netloc.rpartition("@")[2], 1)
    digest = hashlib.sha256(plain.encode()).hexdigest()[:12]
    return folder / f"{name.stem[:100]}.{digest}{name.suffix[:20]}"


# --- one process at a time


@contextlib.contextmanager
def _alone(path: Path, patience: Patience) -> Iterator[bool]:
    """Whether no other process downloads this file meanwhile: False where the file system has no locks, or where the
    holder of the lock makes no progress. The lock ends with its process, however that ends."""
    lock = FileLock(f"{path}.lock")
    locked = _acquire(lock, path, patience)
    try:
        yield locked
    finally:
        if locked:
            lock.release()


def _acquire(lock: FileLock, path: Path, patience: Patience) -> bool:
    console = Console(stderr=True)
    moved, before, told = time.monotonic(), None, False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                with warnings.catch_warnings():  # filelock's, of file systems without flock
                    warnings.simplefilter("ignore")
                    lock.acquire(timeout=min(1.0, patience.lock / 4), poll_interval=0.02)
                return True
            except Timeout:
                now = [(part.name, part.stat().st_size) for part in path.parent.glob(f"{path.name}*.part")]
                if now != before:
                    moved, before = time.monotonic(), now
                if time.monotonic() - moved > patience.lock:
                    return False
                if console.is_terminal and not told:
                    told = True
                    stack.enter_context(console.status(f"another process downloads {path.name}"))
            except (OSError, NotImplementedError):
                return False


# --- one download


class _Failed(Exception):
    """Why a try did not succeed, in words; ``passes``: whether another one may."""

    def __init__(self, words: str, passes: bool = True):
        super().__init__(words)
        self.passes = passes


@dataclass
class _Progress:
    """What earlier tries left: ``validator`` names the version of the file that is there in part (an ETag)."""

    bar: Progress
    task: Any
    validator: str | None = None


def _receive(url: str, part: Path, patience: Patience) -> None:
    """Download to ``part``, with a progress bar; further tries continue where the server can."""
    shown = public(url)
    part.unlink(missing_ok=True)
    with progress_bars(Console(stderr=True), "bytes") as bar:
        state = _Progress(bar, bar.add_task(PurePosixPath(urlsplit(url).path).name, total=None))
        for number in range(patience.tries):
            try:
                _try(url, part, patience, state)
                break
            except _Failed as failed:
                if not failed.passes or number + 1 == patience.tries:
                    often = f" (tried {number + 1} times)" if number else ""
                    raise UserError(f"{shown} cannot be downloaded: {failed}{often}") from None
                time.sleep(patience.pause * 2**number)
    _check_name(url, part, shown)


def _try(url: str, part: Path, patience: Patience, state: _Progress) -> None:
    there = part.stat().st_size if state.validator and part.exists() else 0
    asked = {"User-Agent": "kdstream", "Accept-Encoding": "identity"}
    if there:
        asked |= {"Range": f"bytes={there}-", "If-Range": str(state.validator)}
    opener = _Opener()
    with _translated(patience, opener), opener.within(2 * patience.silence):
        response = opener.open(_request(url, asked), timeout=patience.silence)
    with response:
        if response.status != 206:
            there = 0
        elif not re.match(rf"bytes {there}-\d", response.headers.get("Content-Range", "")):
            state.validator = None
            raise _Failed("the server continues at another place than it was asked to")
        state.validator = _validator(response.headers)
        length = _length(response)
        total = None if length is None else there + length
        if length is not None and length > shutil.disk_usage(part.parent).free:
            raise OSError(None, f"the file has {length:,} bytes, there is less room on the disk")
        state.bar.update(state.task, completed=there, total=total)
        with part.open("ab" if there else "wb") as file:
            count = there
            for piece in _pieces(response, opener, length, patience):
                file.write(piece)
                count += len(piece)
                state.bar.update(state.task, completed=count)
                if total is not None and count > total:
                    state.validator = None
                    raise _Failed(f"the server sends more than the {total} bytes that it announces")
            if total is not None and count < total:
                raise _Failed(f"it ends after {count} of {total} bytes")
            file.flush()
            os.fsync(file.fileno())


def _pieces(response: HTTPResponse, opener: _Opener, length: int | None, patience: Patience) -> Iterator[bytes]:
    """The body as it comes, and what comes after its announced end."""
    if length is not None:
        response.length = None  # read on, so that a longer body than announced is seen
    left = length
    start, received = time.monotonic(), 0
    while True:
        if left == 0:
            # The end, if the server closes the connection, as it is asked to, or sends nothing more.
            opener.wait_at_most(min(1.0, patience.silence))
        try:
            with _translated(patience, opener):
                piece = response.read1(_PIECE)
        except _Failed:
            if left == 0:
                return
            raise
        if not piece:
            return
        yield piece
        received += len(piece)
        left = None if left is None else max(0, left - len(piece))
        if time.monotonic() - start > patience.window:
            if received < patience.pace:
                raise _Failed(f"only {received} bytes came in {patience.window:g} s")
            start, received = time.monotonic(), 0


def _request(url: str, headers: dict[str, str]) -> urllib_request.Request:
    """User and password go into a header, which redirections do not take along."""
    parts = urlsplit(url)
    keys, _, host = parts.netloc.rpartition("@")
    path, query = (quote(text, safe="/%:=&?~#+!$,;'@()*[]|") for text in (parts.path, parts.query))
    request = urllib_request.Request(urlunsplit((parts.scheme, host, path, query, "")), headers=headers)
    if keys:
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(unquote(keys).encode()).decode()}")
    return request


def _length(response: HTTPResponse) -> int | None:
    """The bytes that the answer announces; None: it does not say."""
    if response.chunked:
        return None
    said = {text.strip() for text in response.headers.get_all("Content-Length", [])}
    if not said:
        return None
    text = said.pop()
    if said or not re.fullmatch(r"[0-9]{1,18}", text):
        raise _Failed("the server announces a length that is no number", passes=False)
    return int(text)


def _validator(headers: HTTPMessage) -> str | None:
    """What names this version of the file, so that a part of it can be continued."""
    tag = headers.get("ETag", "")
    return tag if re.fullmatch(r'"[\x21\x23-\x7e]*"', tag) else headers.get("Last-Modified")


def _check_name(url: str, path: Path, shown: str) -> None:
    """That a file has the hash in its name. Elsewhere than on PyTorch's server, eight digits may be a date."""
    parts = urlsplit(url)
    promised = re.search(r"-([0-9a-f]{8,64})\.\w+$", parts.path)
    if promised is None or (promised[1].isdecimal() and parts.hostname != "download.pytorch.org"):
        return
    found = sha256(path)
    if not found.startswith(promised[1]):
        raise UserError(
            f"{shown} is not the file that its name says: its SHA-256 begins with {found[:8]}, not "
            f"{promised[1][:8]}; if the name means something else, download it yourself and give the file"
        )


def sha256(path: Path) -> str:
    """The SHA-256 of a file (hex)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


# --- urllib, with nothing but http and https, and with an end to every wait


class _Opener:
    """Opens one address. Its sockets are known, so that a wait can be ended from outside."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.expired = False
        director = urllib_request.OpenerDirector()
        for handler in (
            urllib_request.ProxyHandler(),
            _Web(self.sockets),
            _Redirections(),
            urllib_request.HTTPDefaultErrorHandler(),
            urllib_request.HTTPErrorProcessor(),
            urllib_request.UnknownHandler(),
        ):
            director.add_handler(handler)
        self.open = director.open

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Ends what is waited for then, however slowly byte follows byte."""

        def end() -> None:
            self.expired = True
            for one in self.sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def wait_at_most(self, seconds: float) -> None:
        """For what comes from here on."""
        with contextlib.suppress(OSError):
            self.sockets[-1].settimeout(seconds)


class _Web(urllib_request.HTTPHandler, urllib_request.HTTPSHandler):
    """Notes the sockets of its connections."""

    def __init__(self, sockets: list[socket.socket]):
        super().__init__()
        self._sockets = sockets

    def _noting(self, kind: type[HTTPConnection]) -> Any:
        sockets = self._sockets

        class Connection(kind):  # type: ignore[misc, valid-type]  # a base that comes as a value
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        return Connection

    def http_open(self, req: urllib_request.Request) -> HTTPResponse:
        return self.do_open(self._noting(HTTPConnection), req)

    def https_open(self, req: urllib_request.Request) -> HTTPResponse:
        return self.do_open(self._noting(HTTPSConnection), req, context=ssl.create_default_context())


class _Redirections(urllib_request.HTTPRedirectHandler):
    """Only to http and https, and to nothing less safe."""

    def redirect_request(
        self, req: urllib_request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib_request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise _Failed(f"it redirects from {old.scheme} to {new.scheme}, which is not followed", passes=False)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        keys = req.unredirected_hdrs.get("Authorization")
        if following is not None and keys and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            following.add_unredirected_header("Authorization", keys)
        return following


@contextlib.contextmanager
def _translated(patience: Patience, opener: _Opener) -> Iterator[None]:
    """What the network's libraries raise, in words of ours: theirs may quote the address with its secrets."""
    try:
        yield
    except HTTPError as error:
        error.close()
        with contextlib.suppress(ValueError):
            phrase = http.HTTPStatus(error.code).phrase
            if 300 <= error.code < 400:
                raise _Failed(f"it redirects in a circle or to no address ({error.code})", passes=False) from None
            raise _Failed(f"the server answers {error.code} {phrase}", error.code in _MAY_PASS) from None
        raise _Failed(f"the server answers {error.code}", passes=False) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if opener.expired or isinstance(reason, TimeoutError):
            raise _Failed(f"no answer for {patience.silence:g} s") from None
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _Failed(f"its certificate is not accepted ({reason.verify_message})", passes=False) from None
        if isinstance(reason, OSError):
            words = reason.strerror or type(reason).__name__
            unknown = isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN
            raise _Failed(words, passes=not unknown) from None
        if isinstance(reason, HTTPException) and not isinstance(reason, http.client.InvalidURL):
            raise _Failed(f"its answer breaks off or is no HTTP ({type(reason).__name__})") from None
        raise _Failed("its address, or one that it redirects to, is not valid", passes=False) from None


_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
