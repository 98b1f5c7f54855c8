"""Order: what a claim says of rows is read, and what it cannot say is told."""

from __future__ import annotations

import pytest

from kdstream.errors import UserError
from kdstream.training.tables.order import Order

ROWS = ("kd", "ckd", "pearson+z", "ijckd-large")


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("ckd > kd", {"ckd": 1, "kd": -1}),
        ("pearson+z  >  kd", {"pearson+z": 1, "kd": -1}),
        ("ckd - kd > ijckd-large - kd", {"ckd": 1, "kd": 0, "ijckd-large": -1}),
        ("ckd + ckd > kd", {"ckd": 2, "kd": -1}),
    ],
)
def test_left_less_right(text, weights):
    found = Order.read(text, ROWS, "here")
    assert (found.weights, found.text) == (weights, " ".join(text.split()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ckd", r"here: order 'ckd': it is as 'ckd > kd'"),
        ("ckd>kd", r"with blanks between"),
        ("ckd - > kd", r"with blanks between"),
        ("ckd kd > kd", r"with blanks between"),
        ("ckd > kdd", r"no row 'kdd': did you mean 'kd'\?"),
        ("kd > kd", r"both sides are the same"),
    ],
)
def test_what_is_no_order(text, message):
    with pytest.raises(UserError, match=message):
        Order.read(text, ROWS, "here")
