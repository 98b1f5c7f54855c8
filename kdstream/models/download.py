"""Files behind http(s) addresses, kept in torch.hub's folder."""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import torch

from kdstream.errors import UserError

T = TypeVar("T")


def is_url(text: object) -> bool:
    """Whether it is an address (``scheme://...``) and not a path."""
    return isinstance(text, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def fetch(url: str, read: Callable[[Path, str], T]) -> T:
    """What ``read(path, url)`` makes of a file, which is downloaded if torch.hub's folder does not have it.

    A download that ``read`` refuses is not kept. Several processes download once.

    Args:
        url: of scheme http or https.
        read: gets the file and what messages are to call it.

    Raises:
        UserError: another scheme, no such file, no connection; and what ``read`` raises.
    """
    path = cached(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it when the file is closed, however that happens
            if not path.exists():
                part = path.with_name(f"{path.name}.part")
                try:
                    _download(url, part)
                    answer = read(part, url)
                    part.replace(path)
                finally:
                    part.unlink(missing_ok=True)
                return answer
    except OSError as error:
        raise UserError(f"{url}: cannot be kept in {path.parent}: {error}") from error
    return read(path, url)


def cached(url: str) -> Path:
    """Where the file of this address is kept: ``checkpoints/NAME.DIGEST.SUFFIX`` in torch.hub's folder.

    The digest of the address tells the many files apart that are called the same (``ckpt_epoch_240.pth``). Names of
    PyTorch's own server stay as they are, so that its files are shared with torchvision.

    Raises:
        UserError: an address that is not http or https, or without a file name.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{url}: only http:// and https:// addresses can be downloaded; give a local file otherwise")
    name = PurePosixPath(re.sub(r"[^\w.=+-]", "_", unquote(parts.path).rpartition("/")[2]))
    if not name.stem.strip("."):
        raise UserError(f"{url} names no file: give the address of a file of weights")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if parts.hostname == "download.pytorch.org":
        return folder / name
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return folder / f"{name.stem[:100]}.{digest}{name.suffix[:20]}"


def _download(url: str, path: Path) -> None:
    # PyTorch's own server writes the beginning of each file's hash into its name.
    host, name = urlsplit(url).hostname, urlsplit(url).path
    promised = re.search(r"-([0-9a-f]{8,})\.\w+$", name) if host == "download.pytorch.org" else None
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=promised[1] if promised else None)
    except Exception as error:  # errors of urllib, of http.client and of the socket, and torch's for a wrong hash
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{url} cannot be downloaded: {reason}") from error
