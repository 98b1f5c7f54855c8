"""A server of files that misbehaves as it is told: stalls, resets, truncation, wrong lengths, errors, redirections."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

PASSING = ("stall", "reset", "truncate", "short", "long", "busy", "elsewhere", "garbage")
"""Faults after which the next try may succeed; "elsewhere" is a redirection to another host, which succeeds itself."""


@dataclass
class FaultyServer:
    """Serves a folder.

    Attributes:
        folder: of the files.
        faults: file name -> what happens to the next requests for it, in order; then it behaves.
        always: file name -> what happens to every request.
        asked: (file name, Range) of all requests.
        resumes: whether it answers with parts.
    """

    folder: Path
    faults: dict[str, list[str]] = field(default_factory=dict)
    always: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    resumes: bool = True
    port: int = 0
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def next_fault(self, name: str) -> str:
        waiting = self.faults.get(name)
        return self.always.get(name) or (waiting.pop(0) if waiting else "none")


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[FaultyServer]:
    """The server, until the block ends."""
    state = FaultyServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            """Nothing: it is a test."""

        def do_GET(self):
            self.close_connection = True
            name = unquote(urlsplit(self.path).path).lstrip("/")
            state.asked.append((name, self.headers.get("Range")))
            with contextlib.suppress(OSError):
                self.answer(name, state.next_fault(name.rpartition("/")[2]))

        def answer(self, name: str, fault: str):
            path = state.folder / name
            if fault == "busy":
                self.send_error(503)
            elif fault == "elsewhere":
                self.moved(f"http://localhost:{state.port}/{name}")
            elif fault == "to a file":
                self.moved(f"file://{path}")
            elif fault == "garbage":
                self.wfile.write(b"\x00\xffno http at all\r\n\r\n")
            elif not path.is_file():
                self.send_error(404)
            else:
                self.send_file(path.read_bytes(), fault)

        def moved(self, place: str):
            self.send_response(302)
            self.send_header("Location", place)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_file(self, data: bytes, fault: str):
            whole, begin = len(data), 0
            asked = self.headers.get("Range")
            if fault == "corrupt":
                data = data[:-1] + bytes([data[-1] ^ 1])
            if asked and state.resumes:
                begin = int(asked.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{whole - 1}/{whole}")
            else:
                self.send_response(200)
            body = data[begin:]
            self.send_header("ETag", f'"{whole}"')
            wrong = {"long": len(body) // 2, "short": len(body) + 7}
            self.send_header("Content-Length", str(wrong.get(fault, len(body))))
            self.end_headers()
            if fault in ("stall", "reset", "truncate"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                if fault == "stall":
                    state.closing.wait(5)
                elif fault == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                return
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
