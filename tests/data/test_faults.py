"""The list of samples whose image cannot be decoded."""

from __future__ import annotations

import pytest

from kdstream.data.faults import Faults, Undecodable, allowed_share
from kdstream.errors import UserError


def fault(index: int) -> Undecodable:
    return Undecodable("cannot decode", "cut off", index, f"k{index}", "a.tar")


def test_policies():
    assert [allowed_share(text) for text in ("stop", "skip", "skip(0.001)", "skip( 1 )")] == [None, 1.0, 0.001, 1.0]
    for text in ("skip(0)", "skip(2)", "skip()", "skip(a)", "skip(1e)", "never", ""):
        with pytest.raises(UserError, match=r"^on_error is stop, skip, or skip\(SHARE\)"):
            allowed_share(text)


def test_each_is_listed_once_and_more_than_the_share_is_one_line(tmp_path):
    faults = Faults(tmp_path / "run" / "skipped.jsonl", 0.02, 100)
    for index in (7, 7, 3, 7):
        faults.add(fault(index))
    assert faults.listed()[0] == {"index": 7, "key": "k7", "shard": "a.tar", "reason": "cut off"}
    assert [one["index"] for one in Faults(faults.file, 1.0, None).listed()] == [7, 3]
    with pytest.raises(UserError, match=r"^3 of 100 samples cannot be decoded, more than on_error=skip\(0\.02\)"):
        faults.add(fault(1))


def test_half_a_line_is_passed_over(tmp_path):
    faults = Faults(tmp_path / "skipped.jsonl", 1.0, None)
    faults.add(fault(1))
    with faults.file.open("ab") as file:
        file.write(b'{"index": 5, "ke\n[1]\n\xff\n')
    faults.add(fault(2))
    assert [one["index"] for one in faults.listed()] == [1, 2]
