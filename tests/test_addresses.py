"""Addresses: what of them may be written down and shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdstream.addresses import is_url, joined, public, public_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/a.pth", "https://host/a.pth"),
        ("https://me:secret@host:8/a.pth?token=secret#secret", "https://host:8/a.pth"),
        ("https://me@x:sec@host/a.pth", "https://host/a.pth"),
        ("https://me:sec/ret@host/a.pth", "https://host/a.pth"),
        ("https://host/a?x=1 y=secret", "https://host/a"),
        ("https://[::1]:80/a?secret", "https://[::1]:80/a"),
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("teacher=https://host/a.pth?secret out=b", "teacher=https://host/a.pth out=b"),
        ("it is 'https://me:secret@host/a?b', or", "it is 'https://host/a', or"),
        ("runs/a b?c#d@e", "runs/a b?c#d@e"),
    ],
)
def test_what_of_an_address_is_shown(text, shown):
    assert public(text) == shown
    assert public_values({"a": [text, 3, None]}) == {"a": [shown, 3, None]}


@given(
    scheme=st.sampled_from(["https", "s3", "git+ssh"]),
    password=st.text("ab:/?#1", max_size=9).map("p".__add__),
    query=st.text("?#=&x", max_size=6),
)
def test_no_secret_is_shown_and_what_is_shown_stays(scheme, password, query):
    shown = public(f"{scheme}://me:{password}SECRET@host.org/a.pth?token=SECRET{query}")
    assert "SECRET" not in shown
    assert shown.startswith(f"{scheme}://")
    assert public(shown) == shown


@pytest.mark.parametrize(
    ("text", "is_one"), [("https://h", True), ("a+b.c-1://", True), ("C:/a", False), ("1a://h", False), (3, False)]
)
def test_what_is_an_address(text, is_one):
    assert is_url(text) is is_one


@pytest.mark.parametrize(
    ("address", "below"),
    [
        ("https://me:pw@host/birds/?key=1", "https://me:pw@host/birds/a%20b%3F.tar?key=1"),
        ("http://host", "http://host/a%20b%3F.tar"),
        ("s3://bucket/birds/", "s3://bucket/birds/a b?.tar"),
    ],
)
def test_what_lies_below_an_address(address, below):
    assert joined(address, "a b?.tar") == below
