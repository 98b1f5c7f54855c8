"""``kdstream train``: the entry ``kdstream/train.py`` in this process; ``accelerate launch`` starts that one itself."""

from __future__ import annotations

from collections.abc import Sequence

from kdstream.cli.frame import find_own_modules
from kdstream.train import main as train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code of :func:`kdstream.train.main`."""
    find_own_modules()
    return train(arguments)
