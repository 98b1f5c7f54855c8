from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdstream.display.numbers import best_index, format_column, format_loss, format_number, format_seconds


@given(st.lists(st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=3)), max_size=6))
def test_a_column_formats_any_value(values):
    texts = format_column(values)
    assert len(texts) == len(values)
    best = best_index(values)
    if best is not None:
        finite = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
        assert values[best] == max(finite)


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (97.25, "97.2"), (1.234, "1.23"), (0.00312, "0.00312"), (0, "0.00")]
)
def test_numbers(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1:00"),
        (200, "3:20"),
        (3723, "1:02:03"),
        (2 * 86400 + 3 * 3600, "2 d 03:00"),
    ],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.30259, "2.303"), (0.0, "0.000"), (1e-5, "1.0e-05"), (12345.0, "1.2e+04"), (math.nan, "nan")]
)
def test_losses(value, text):
    assert format_loss(value) == text
