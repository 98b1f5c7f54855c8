"""Weights as others publish them, at a local address: stand-ins for what tests cannot reach."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdstream.models import published
from kdstream.models.download import Patience
from kdstream.models.published import Published

HASTY = Patience(silence=5.0, tries=2, pause=0.01)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; notes in the server's ``asked`` from which byte on. As often as its ``breaks`` says, it breaks
    off in the middle."""

    def log_message(self, *_: Any) -> None:
        """Nothing: it is a test."""

    def do_GET(self) -> None:
        path = Path(self.directory) / os.path.basename(self.path)
        begin = int(re.sub(r"\D", "", self.headers.get("Range", "")) or 0)
        self.server.asked.append((self.path, begin))
        if not path.is_file():
            return self.send_error(404)
        body = path.read_bytes()
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        self.send_header("ETag", '"v1"')
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body[begin:])
        return None


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; ``asked``: (path, first byte) of every request; ``breaks``: how many transfers break off."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.folder, self.asked, self.breaks = folder, [], 0
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and an empty torch.hub folder beside what it serves."""
    monkeypatch.setenv("TORCH_HOME", str(folder.parent / "home"))
    monkeypatch.setattr("kdstream.models.download.PATIENCE", HASTY)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder.mkdir()
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def publish(server: Server, monkeypatch: pytest.MonkeyPatch, name: str, **about: Any) -> Published:
    """Make an entry beside kdstream's own, of a file ``ckpt_epoch_240.pth`` on the server; of resnet8 for 10 classes,
    if nothing else is said."""
    entry = {
        "name": name,
        "network": {"name": "resnet8", "num_classes": 10},
        "address": f"{server.url}/ckpt_epoch_240.pth",
        "sha256": None,
        "mean": (0.5, 0.25, 0.125),
        "std": (0.5, 0.4, 0.3),
        "classes": None,
        "top1": 75.0,
        "source": "a test",
        "format": "as RepDistiller's",
    }
    made = Published(**{**entry, **about})
    known = {**published.known(), name: made}
    monkeypatch.setattr(published, "known", lambda: known)
    return made


def save_as_repdistiller(state: Mapping[str, Tensor], path: Path) -> None:
    """A dict with ``model`` among others, as torch 0.4 wrote it on a GPU: one pickle after the other, without zip."""
    whole = {"epoch": 240, "model": dict(state), "accuracy": torch.tensor(72.34), "optimizer": {"state": {}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.serialization.location_tag", lambda _storage: "cuda:0")
        torch.save(whole, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert b"ctorch\nFloatStorage\n" in data
    path.write_bytes(re.sub(rb"ctorch\n(Float|Long)Storage\n", rb"ctorch.cuda\n\1Storage\n", data))
