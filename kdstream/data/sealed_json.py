"""JSON objects that carry their own checksum: a changed byte is noticed, not read as another number."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SEAL = "sha256"


def sealed(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` with its checksum (hex SHA-256 of its canonical JSON) as the last entry, ``sha256``."""
    rest = {name: value for name, value in data.items() if name != SEAL}
    return {**rest, SEAL: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def seal_fits(data: dict[str, Any]) -> bool:
    """Whether the checksum is that of the rest; False where there is none."""
    return SEAL in data and sealed(data)[SEAL] == data[SEAL]
