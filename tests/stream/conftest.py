"""A teacher to stream with."""

from __future__ import annotations

import pytest
from small_teacher import Net


@pytest.fixture
def net():
    return Net().eval()
