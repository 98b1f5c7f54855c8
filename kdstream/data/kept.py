"""What is remembered beside shards, or in the cache folder: indices and checksums, and the bar while they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdstream.bars import reading_progress
from kdstream.data.checksums import (
    Checksum,
    Checksums,
    in_threads,
    state_of,
)
from kdstream.errors import UserError

if TYPE_CHECKING:
    pass


def checksums_of(memory: Checksums, names: Sequence[str]) -> list[Checksum]:
    """Checksums of these shards, by reading those of which none is remembered."""
    if not all(memory.known(name) for name in names):
        with memory.alone():
            missing = [name for name in names if memory.known(name) is None]
            total = sum(state_of(memory.folder / name).size for name in missing)
            with reading_progress(total, f"checking {memory.folder.name}") as advance:
                for _ in in_threads(lambda name, stop: memory.read(name, advance, stop), missing):
                    memory.save_now_and_then()
    return [memory.known(name) or memory.read(name) for name in names]


def store(file: str, save: Callable[[Path], None], folders: Sequence[Path]) -> Path:
    """Save ``file`` in the first of ``folders`` that can be written; the later ones are created when needed.

    Raises:
        UserError: none can be written.
    """
    reasons = []
    for i, folder in enumerate(folders):
        try:
            if i > 0:
                folder.mkdir(parents=True, exist_ok=True)
            save(folder / file)
            return folder / file
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror or error}")
    raise UserError(f"cannot store the index {file}: {'; '.join(reasons)}")
