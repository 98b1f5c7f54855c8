"""One file behind an address, whatever its scheme: http(s) by our own client, stores of objects through fsspec."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kdstream.addresses import is_url, public
from kdstream.errors import UserError
from kdstream.web import Failed, Patience, announced, persistently, receive

STORES: dict[str, str | None] = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "memory": None,
}
"""Schemes that are read through fsspec -> the package that it needs for them. No others: fsspec also knows schemes that
run commands on other machines, or that are made of several addresses."""
PATIENCE = Patience(tries=6, pause=0.5)
"""Shards are many and large: a try more each costs nothing where all is well."""
_PIECE = 1 << 20


def check_address(address: str) -> None:
    """That kdstream reads from such an address.

    Raises:
        UserError: it does not.
    """
    scheme = address.partition("://")[0].lower()
    if not is_url(address) or "::" in address or (scheme not in STORES and scheme not in ("http", "https")):
        known = ", ".join(f"{name}://" for name in ("http", "https", *(one for one, need in STORES.items() if need)))
        raise UserError(f"cannot read {public(address)}: shards lie in a folder or at {known}; no command is ever run")


def is_web(address: str) -> bool:
    """Whether it is an http(s) address."""
    return address.lower().startswith(("http://", "https://"))


def look(address: str, patience: Patience | None = None) -> tuple[int | None, str | None]:
    """The bytes of a file, and what names its version; None where that is not told.

    Raises:
        kdstream.web.NotReceived: there is no such file, or no way to it.
    """
    patience = patience or PATIENCE
    if is_web(address):
        return announced(address, patience)
    found: list[tuple[int | None, str | None]] = []

    def attempt() -> None:
        about = _asked(address, lambda store, path: store.info(path))
        version = next(
            (str(about[key]) for key in ("ETag", "etag", "md5Hash", "blob_id", "created") if key in about), None
        )
        found.append((about.get("size"), version))

    persistently(public(address), patience, attempt)
    return found[0]


def receive_file(
    address: str,
    part: Path,
    patience: Patience | None = None,
    told: Callable[[int, int | None], None] = lambda done, total: None,
    most: int | None = None,
) -> None:
    """Download a file; arguments and errors are those of :func:`kdstream.web.receive`, for every scheme."""
    check_address(address)
    patience = patience or PATIENCE
    if is_web(address):
        receive(address, part, patience, told, most)
        return
    part.unlink(missing_ok=True)
    version: list[Any] = []

    def attempt() -> None:
        about = _asked(address, lambda store, path: store.info(path))
        now = [about.get("size"), _version(about)]
        if most is not None and (now[0] or 0) > most:
            raise Failed(f"it has {now[0]} bytes, it should be {most}", passes=False)
        there = part.stat().st_size if version == now and part.exists() else 0
        version[:] = now

        def copy(store: Any, path: str) -> None:
            with store.open(path, "rb") as source, part.open("ab" if there else "wb") as file:
                source.seek(there)
                count = there
                while piece := source.read(_PIECE):
                    count += len(piece)
                    if most is not None and count > most:
                        raise Failed(f"it has more than the {most} bytes that it should be", passes=False)
                    _write(file, piece)
                    told(count, now[0])
                if now[0] is not None and count != now[0]:
                    raise Failed(f"it ends after {count} of {now[0]} bytes")
                file.flush()
                os.fsync(file.fileno())

        _asked(address, copy)

    try:
        persistently(public(address), patience, attempt)
    except _Disk as error:
        raise error.reason from None


def _version(about: dict[str, Any]) -> str | None:
    """What names this version of a file, by the names that the stores have for it."""
    keys = ("ETag", "etag", "md5Hash", "blob_id", "created")
    return next((str(about[key]) for key in keys if about.get(key)), None)


class _Disk(Exception):
    """Something is wrong on this side."""

    def __init__(self, reason: OSError):
        self.reason = reason


def _write(file: Any, piece: bytes) -> None:
    try:
        file.write(piece)
    except OSError as error:
        raise _Disk(error) from None


def _asked(address: str, question: Callable[[Any, str], Any]) -> Any:
    """What a store answers.

    Raises:
        Failed: it does not, in words.
        UserError: a package is missing.
    """
    import fsspec

    scheme = urlsplit(address).scheme.lower()
    try:
        store, path = fsspec.core.url_to_fs(address)
        return question(store, path)
    except (Failed, _Disk, UserError):
        raise
    except ImportError:
        need = STORES[scheme]
        raise UserError(f"{scheme}:// addresses need the package {need}: pip install 'kdstream[remote]'") from None
    except FileNotFoundError:
        raise Failed("there is no such file", passes=False, status=404) from None
    except PermissionError as error:
        raise Failed(f"access is refused ({_words(error)})", passes=False, status=403) from None
    except Exception as error:  # each store's library raises kinds of its own
        raise Failed(_words(error)) from None


def _words(error: Exception) -> str:
    return public(" ".join(str(error).split()))[:200] or type(error).__name__


def list_tars(address: str, patience: Patience | None = None) -> list[str]:
    """The addresses of the tars right below an address of a store of objects, sorted.

    Raises:
        kdstream.web.NotReceived: there is no such place, or no way to it.
    """
    found: list[str] = []

    def attempt() -> None:
        def names(store: Any, path: str) -> list[str]:
            return sorted(str(store.unstrip_protocol(name)) for name in store.ls(path, detail=False))

        found[:] = [name for name in _asked(address, names) if name.endswith(".tar")]

    persistently(public(address), patience or PATIENCE, attempt)
    return found
