"""Files behind http(s) addresses, kept in torch.hub's folder: whole or not at all, and never waited for without end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from kdstream.addresses import is_url as is_url
from kdstream.addresses import public
from kdstream.bars import progress_bars
from kdstream.errors import UserError
from kdstream.web import PATIENCE, Patience, receive

T = TypeVar("T")


class Unavailable(UserError):
    """An address does not give what it is named for: nothing, or something else."""


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


def _receive(url: str, part: Path, patience: Patience) -> None:
    """Download to ``part``, with a progress bar."""
    with progress_bars(Console(stderr=True), "bytes") as bar:
        task = bar.add_task(PurePosixPath(urlsplit(url).path).name, total=None)
        receive(url, part, patience, lambda done, total: bar.update(task, completed=done, total=total))
    _check_name(url, part, public(url))


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
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
