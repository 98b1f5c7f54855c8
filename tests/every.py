"""``KDSTREAM_TEST_EVERY=1`` tries all of what the suite tries a sample of."""

from __future__ import annotations

import os

EVERY = bool(os.environ.get("KDSTREAM_TEST_EVERY"))
