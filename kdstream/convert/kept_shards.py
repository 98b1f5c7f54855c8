"""Shards of any source without a step of its own: made once, kept in the cache folder, found by content."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from kdstream.convert.hold_out import hold_out as held_out
from kdstream.convert.make_shards import make_shards
from kdstream.convert.open_source import open_source
from kdstream.convert.split import Source
from kdstream.data.cache_folder import cache_folder
from kdstream.data.dataset_info import DATASET_FILE
from kdstream.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

LAYOUT = 1
"""Raised when the same source is to give other shards: those that are kept are then made anew."""


def kept_shards(
    source: str | Source | Callable[[], Source],
    hold_out: float | None = None,
    fingerprint: str | None = None,
    console: Console | None = None,
) -> Path:
    """The data set folder of a source's shards; made where they are not kept yet, whole or in part.

    They are found by the source's listing: of files their names, sizes and times, of pixels their bytes. A source that
    changes gets other shards. What is kept may be deleted at any time, it is made again.

    Args:
        source: as a command line names it (:func:`~kdstream.convert.open_source.open_source`), opened, or what opens
            it.
        hold_out: see :func:`~kdstream.convert.make_shards.make_shards`.
        fingerprint: names the content, so that the source is not read to find its shards; whoever gives it changes it
            with the content.
        console: where progress is shown; None: nowhere.

    Raises:
        UserError: of the source, or of making the shards.
    """
    told = source if isinstance(source, str) else getattr(source, "name", "dataset")
    opened: Source | None = None
    if fingerprint is None:
        opened = _opened(source)
        splits = {name: split.identity() for name, split in opened.splits.items()}
        content = [opened.name.partition(":")[0], opened.classes, splits]
    else:
        content = [told, fingerprint]
    digest = hashlib.sha256(json.dumps([LAYOUT, content, hold_out]).encode()).hexdigest()[:12]
    folder = cache_folder("shards", f"{_slug(told)}-{digest}")
    if (folder / DATASET_FILE).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        with lock:  # the processes of one machine that are started together
            if not (folder / DATASET_FILE).is_file():
                made = _opened(source) if opened is None else opened
                if console is not None:
                    console.print(f"Making shards of {told} in {folder}", markup=False, highlight=False)
                make_shards(made if hold_out is None else held_out(made, hold_out), folder, console=console)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; set XDG_CACHE_HOME") from error
    return folder


def _opened(source: str | Source | Callable[[], Source]) -> Source:
    if isinstance(source, str):
        return open_source(source)
    return source if isinstance(source, Source) else source()


def _slug(text: str) -> str:
    kind, _, place = text.partition(":")
    parts = [kind, os.path.basename(place.rstrip("/"))]
    return re.sub(r"[^\w.-]+", "-", "-".join(filter(None, parts)))[:60]
