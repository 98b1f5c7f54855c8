"""Addresses (``scheme://...``) and names of published weights: which texts are one, and what of them may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard
from urllib.parse import quote

PUBLISHED = "published:"

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
_WITHIN = re.compile(rf"({_SCHEME})([^\s'\"]*)")
_WHOLE = re.compile(rf"({_SCHEME})(.*)", re.DOTALL)


def is_url(text: object) -> TypeGuard[str]:
    """Whether it is an address and not a path."""
    return isinstance(text, str) and _WHOLE.match(text) is not None


def is_published(text: object) -> bool:
    """Whether it names published weights: ``published:NAME@DATA``; see :mod:`kdstream.models.published`."""
    return isinstance(text, str) and text.startswith(PUBLISHED)


def joined(address: str, *names: str) -> str:
    """The address of what lies below another: ``joined("https://host/birds?key=1", "a b.tar")`` is
    ``https://host/birds/a%20b.tar?key=1``. Only http(s) addresses have a query, and names that are quoted in them."""
    if not address.startswith(("http://", "https://")):
        return "/".join((address.rstrip("/"), *names))
    place, mark, rest = address.partition("?")
    return "/".join((place.rstrip("/"), *map(quote, names))) + mark + rest


def public(text: str) -> str:
    """The text with every address in it cut down to what gives nobody access: ``https://user:secret@host/a.pth?token=x``
    becomes ``https://host/a.pth``. A text without addresses stays as it is."""
    whole = _WHOLE.fullmatch(text)
    return _bare(whole) if whole else _WITHIN.sub(_bare, text)


def public_values(data: Any) -> Any:
    """Nested dicts and lists with :func:`public` applied to every text in them."""
    if isinstance(data, str):
        return public(data)
    if isinstance(data, Mapping):
        return {key: public_values(value) for key, value in data.items()}
    return [public_values(value) for value in data] if isinstance(data, list | tuple) else data


def _bare(address: re.Match[str]) -> str:
    rest = re.split(r"[?#]", address[2], maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    host = host.rpartition("@")[2]
    if re.search(r":(?!\d*$)", host) and not host.startswith("["):
        # No port: the beginning of a password in which there is a slash.
        return address[1] + (rest.rpartition("@")[2] if "@" in rest else "...")
    return f"{address[1]}{host}{slash}{path}"
