"""The seal of a JSON object: whatever is changed, it does not fit."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from kdstream.data.sealed_json import seal_fits, sealed

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda name: name != "sha256"), VALUES, max_size=4), st.text(), VALUES)
def test_it_fits_what_was_sealed_also_after_a_file_and_nothing_else(data, name, value):
    read = json.loads(json.dumps(sealed(data)))
    assert seal_fits(read)
    changed = {**read, name: value}
    assert seal_fits(changed) == (json.dumps(changed, sort_keys=True) == json.dumps(read, sort_keys=True))
    assert not seal_fits(data)


def test_the_seal():
    data = sealed({"b": [1, 0.1, "ü"], "a": None})
    assert list(data) == ["b", "a", "sha256"]
    assert seal_fits(json.loads(json.dumps(data)))
    assert sealed(data) == data
    assert not seal_fits({**data, "a": 0})
    assert not seal_fits({"a": None})
