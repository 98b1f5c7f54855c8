"""One file from an http(s) address: whole or not at all, by several tries, and never waited for without end."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import IO, Any
from urllib import request as urllib_request
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from kdstream.addresses import public
from kdstream.errors import UserError


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


PATIENCE = Patience()
_PIECE = 1 << 20


class NotReceived(UserError):
    """An address does not give a file; ``status`` is the server's answer (404, ...) where that is why."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class Failed(Exception):
    """Why a try did not succeed, in words; ``passes``: whether another one may; ``status``: of the answer."""

    def __init__(self, words: str, passes: bool = True, status: int | None = None):
        super().__init__(words)
        self.passes, self.status = passes, status


@dataclass
class _State:
    """What earlier tries left: ``validator`` names the version of the file that is there in part (an ETag)."""

    told: Callable[[int, int | None], None]
    most: int | None
    validator: str | None = None


def receive(
    url: str,
    part: Path,
    patience: Patience = PATIENCE,
    told: Callable[[int, int | None], None] = lambda done, total: None,
    most: int | None = None,
) -> None:
    """Download to ``part``; further tries continue where the server can. User and password in the address are sent as
    basic authentication, to its host alone.

    Args:
        url: of scheme http or https; redirections lead to these alone, and not from https to http.
        part: the file; what is there is replaced.
        patience: what is put up with.
        told: now and then, the bytes that are there, and those of all (None = the server does not say).
        most: a file of more bytes is refused.

    Raises:
        NotReceived: no such file, no connection, an answer that does not come or is not what it says.
        OSError: the file cannot be written.
    """
    part.unlink(missing_ok=True)
    state = _State(told, most)
    persistently(public(url), patience, lambda: _try(url, part, patience, state))


def announced(url: str, patience: Patience = PATIENCE) -> tuple[int | None, str | None]:
    """The length of a file, and what names its version (an ETag or a date), as the server says; None: it does not.

    Raises:
        NotReceived: as :func:`receive`.
    """
    found: list[tuple[int | None, str | None]] = []

    def attempt() -> None:
        with _opened(url, {}, patience, _Opener()) as response:
            found.append((_length(response), _validator(response.headers)))

    persistently(public(url), patience, attempt)
    return found[0]


def persistently(shown: str, patience: Patience, attempt: Callable[[], None]) -> None:
    """Try until it succeeds, with longer and longer pauses.

    Raises:
        NotReceived: it raised :class:`Failed` every time, or once for good.
    """
    for number in range(patience.tries):
        try:
            attempt()
            return
        except Failed as failed:
            if not failed.passes or number + 1 == patience.tries:
                often = f" (tried {number + 1} times)" if number else ""
                raise NotReceived(f"{shown} cannot be downloaded: {failed}{often}", failed.status) from None
            time.sleep(patience.pause * 2**number)


def _try(url: str, part: Path, patience: Patience, state: _State) -> None:
    there = part.stat().st_size if state.validator and part.exists() else 0
    rest = {"Range": f"bytes={there}-", "If-Range": str(state.validator)} if there else {}
    opener = _Opener()
    with _opened(url, rest, patience, opener) as response:
        if response.status != 206:
            there = 0
        elif not re.match(rf"bytes {there}-\d", response.headers.get("Content-Range", "")):
            state.validator = None
            raise Failed("the server continues at another place than it was asked to")
        state.validator = _validator(response.headers)
        length = _length(response)
        total = None if length is None else there + length
        if state.most is not None and total is not None and total > state.most:
            raise Failed(f"the server announces {total} bytes, it should be {state.most}")
        if length is not None and length > shutil.disk_usage(part.parent).free:
            raise OSError(None, f"the file has {length:,} bytes, there is less room on the disk")
        state.told(there, total)
        with part.open("ab" if there else "wb") as file:
            count = there
            for piece in _pieces(response, opener, length, patience):
                file.write(piece)
                count += len(piece)
                state.told(count, total)
                if state.most is not None and count > state.most:
                    raise Failed(f"the server sends more than the {state.most} bytes that it should be")
                if total is not None and count > total:
                    state.validator = None
                    raise Failed(f"the server sends more than the {total} bytes that it announces")
            if total is not None and count < total:
                raise Failed(f"it ends after {count} of {total} bytes")
            file.flush()
            os.fsync(file.fileno())


def _opened(url: str, headers: dict[str, str], patience: Patience, opener: _Opener) -> HTTPResponse:
    asked = {"User-Agent": "kdstream", "Accept-Encoding": "identity", **headers}
    with _translated(patience, opener), opener.within(2 * patience.silence):
        return opener.open(_request(url, asked), timeout=patience.silence)


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
        except Failed:
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
                raise Failed(f"only {received} bytes came in {patience.window:g} s")
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
        raise Failed("the server announces a length that is no number", passes=False)
    return int(text)


def _validator(headers: HTTPMessage) -> str | None:
    """What names this version of the file, so that a part of it can be continued."""
    tag = headers.get("ETag", "")
    return tag if re.fullmatch(r'"[\x21\x23-\x7e]*"', tag) else headers.get("Last-Modified")


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
            raise Failed(f"it redirects from {old.scheme} to {new.scheme}, which is not followed", passes=False)
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
                raise Failed(f"it redirects in a circle or to no address ({error.code})", passes=False) from None
            words, passes = f"the server answers {error.code} {phrase}", error.code in _MAY_PASS
            raise Failed(words, passes, error.code) from None
        raise Failed(f"the server answers {error.code}", False, error.code) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if opener.expired or isinstance(reason, TimeoutError):
            raise Failed(f"no answer for {patience.silence:g} s") from None
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise Failed(f"its certificate is not accepted ({reason.verify_message})", passes=False) from None
        if isinstance(reason, OSError):
            words = reason.strerror or type(reason).__name__
            unknown = isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN
            raise Failed(words, passes=not unknown) from None
        if isinstance(reason, HTTPException) and not isinstance(reason, http.client.InvalidURL):
            raise Failed(f"its answer breaks off or is no HTTP ({type(reason).__name__})") from None
        raise Failed("its address, or one that it redirects to, is not valid", passes=False) from None


_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
