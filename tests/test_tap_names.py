"""Names that stand for several taps: what they are spelled out to, in which order, and where nothing fits."""

from __future__ import annotations

import pytest

from kdstream.errors import UserError
from kdstream.tap_names import is_group, spelled_out

KNOWN = (
    "stem",
    "block10",
    "block2.pre",
    "block2",
    "block1",
    "block1.pre",
    "block1.attention",
    "myblock3",
    "penultimate",
)


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("block*", ("block1", "block2", "block10")),
        ("block*.pre", ("block1.pre", "block2.pre")),
        ("block.last", ("block10",)),
        ("block.last.pre", ("block2.pre",)),
        ("block2", ("block2",)),
        ("block", ("block",)),
        ("nobody", ("nobody",)),
    ],
)
def test_what_a_name_stands_for(name, taps):
    assert spelled_out(name, KNOWN) == taps
    assert is_group(name) == (("*" in name) or ("last" in name))


def test_a_network_without_blocks():
    with pytest.raises(
        UserError,
        match=r"unknown tap 'block\*.pre': none of the taps \(block1, stem\) is a block.pre; name block1.pre, ",
    ):
        spelled_out("block*.pre", ["block1", "stem"])
