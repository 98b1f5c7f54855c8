"""The user's cache folder: what can be made again, and has no place beside the data."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """``kdstream/PARTS`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``). Not made here."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root, "kdstream", *parts)
