"""Upload: what a stand-in for the Hub is sent by huggingface_hub itself, and what is said when it refuses."""

from __future__ import annotations

import base64
import json
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kdstream.api.hub import check_hub, upload
from kdstream.errors import UserError

huggingface_hub = pytest.importorskip("huggingface_hub")
TOKEN = "hf_" + "s" * 34
CARD = b"---\nlibrary_name: kdstream\n---\n# student\n"


@pytest.fixture
def hub(monkeypatch):
    """A stand-in that keeps the requests it gets; ``hub["refuse"]`` is what it says to commits."""
    seen = {"files": {}, "tokens": set(), "made": [], "refuse": None}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen["tokens"].add(self.headers["Authorization"])
            code, said = 200, {}
            if self.path.endswith("/repos/create"):
                seen["made"].append(json.loads(body))
                said = {"url": f"{place}/me/birds"}
            elif "/preupload/" in self.path:
                names = [one["path"] for one in json.loads(body)["files"]]
                modes = [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in names]
                said = {"files": modes}
            elif "/commit/" in self.path and seen["refuse"]:
                code, said = 403, {"error": seen["refuse"]}
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "header":
                        seen["message"] = line["value"]["summary"]
                    else:
                        seen["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                said = {"commitUrl": "https://huggingface.co/me/birds/commit/1", "commitOid": "1"}
            answer = json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    place = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub, "HfApi", partial(huggingface_hub.HfApi, endpoint=place))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield seen
    server.shutdown()
    server.server_close()


def test_all_files_go_there_in_one_commit(hub):
    files = {"README.md": CARD, "student.json": b"{}", "student.safetensors": bytes(range(256))}
    address = upload("me/birds", files, "A student", private=True)
    assert address.endswith("/me/birds")
    assert hub["files"] == files
    assert hub["message"] == "A student"
    assert hub["tokens"] == {f"Bearer {TOKEN}"}
    (made,) = hub["made"]
    assert (made["name"], made["organization"]) == ("birds", "me")
    assert made.get("private") is True or made.get("visibility") == "private"


def test_a_refusal_is_a_line_without_the_token(hub):
    hub["refuse"] = f"{TOKEN} may not\nwrite here"
    with pytest.raises(UserError, match=r"the upload to me/birds failed: .*403") as error:
        upload("me/birds", {"README.md": CARD}, "A student")
    assert TOKEN not in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None


def test_what_is_missing_is_said_before_any_work(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="needs a token of the Hub with write access: hf auth login, or set HF_TOKEN"):
        check_hub("me/birds")
    for wrong in ("birds", "me/birds/2", "https://huggingface.co/me/birds", "../birds", "me/"):
        with pytest.raises(UserError, match="it is user/name"):
            check_hub(wrong)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'kdstream\[hub\]'"):
        check_hub("me/birds")
