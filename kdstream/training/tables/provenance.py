"""Provenance: by which code results came about."""

from __future__ import annotations

import subprocess
from pathlib import Path

import kdstream


def version() -> str:
    """``kdstream 1.2, commit 0123456``; with "and changes" where files differ from it; the version alone outside of a
    clone."""
    root = Path(kdstream.__file__).parent.parent
    said = f"kdstream {kdstream.__version__}"
    if not (root / ".git").exists():
        return said
    try:
        asked = (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "-uno"])
        commit, changes = (
            subprocess.run(["git", "-C", root, *what], capture_output=True, text=True, check=True, timeout=20).stdout
            for what in asked
        )
    except (OSError, subprocess.SubprocessError):  # no git here, or a clone that it does not trust
        return said
    return f"{said}, commit {commit.strip()}{' and changes' if changes.strip() else ''}"
