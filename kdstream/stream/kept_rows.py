"""What is kept of a split, a row of bytes a sample: made once by all processes, found again by all that decides it.

A chunk of samples that is done is on disk; a process that is killed and started again goes on after its last chunk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from kdstream.atomic import replacing, write_atomic
from kdstream.bars import conversion_progress
from kdstream.batch import Batch
from kdstream.data.cache_folder import cache_folder
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.stream.plan import Plan

CHUNK = 512
"""Samples that are worked out, and saved, together. Fixed: the teacher's rounding depends on what shares a forward
pass."""
CHECKED = 1 << 24
"""Bytes of a file that are checked together."""
ABANDONED = 60 * 24 * 3600
"""Seconds after which the chunks of what was never finished may go."""


@dataclass(frozen=True)
class Kind:
    """What sort of thing is kept.

    Attributes:
        name: for people: "coding plan".
        mark: in the names of its files.
        on, off: settings by which a user asks for it, and does without.
    """

    name: str
    mark: str
    on: str
    off: str


def alone(value: Any) -> list[Any]:
    """What all processes share where there is one."""
    return [value]


def read_kept(path: Path, key: Mapping[str, Any], count: int, width: int, kind: Kind) -> torch.Tensor:
    """What is kept in a file.

    Args:
        path: of the file; its key lies beside it, as JSON.
        key: what it must have been made for.
        count: number of samples.
        width: bytes of each.
        kind: what it is, for messages.

    Returns:
        uint8 [count,width], mapped: all processes of a machine share it.

    Raises:
        UserError: no such file, one that was made for something else (the message says what differs), a damaged one.
    """
    try:
        made_for = json.loads(path.with_suffix(".json").read_text())
        data = np.memmap(path, np.uint8, "c") if path.stat().st_size else np.zeros(0, np.uint8)
    except (OSError, ValueError) as error:
        raise UserError(f"no {kind.name} at {path} ({error}): leave {kind.on} to make one") from None
    different = [f"{name} {_short(made_for.get(name))}, not {_short(key[name])}" for name in key
                 if made_for.get(name) != key[name]]  # fmt: skip
    if different:
        fits = f"use {kind.on}, or the one that fits"
        raise UserError(f"{kind.name} {path} was made for {'; '.join(different)}: {fits}")
    digest, whole = hashlib.sha256(), len(data) == count * width
    for start in range(0, len(data) if whole else 0, CHECKED):
        digest.update(data[start : start + CHECKED].data)
    if not whole or digest.hexdigest() != made_for.get("sha256"):
        raise damaged(path, kind)
    return torch.from_numpy(data).view(count, width)


def damaged(path: Path, kind: Kind) -> UserError:
    """What to say of such a file."""
    return UserError(f"{kind.name} {path} is damaged: delete it, and {kind.on} makes it again")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def make_kept(
    dataset: ShardSet,
    name: str,
    key: Mapping[str, Any],
    layout: Plan,
    width: int,
    rows: Callable[[Sequence[int]], Iterator[bytes]],
    kind: Kind,
    rank: int = 0,
    world: int = 1,
    share: Callable[[Any], list[Any]] = alone,
    after_chunk: Callable[[], None] = lambda: None,
    told: str = "",
) -> Path:
    """The file that is kept for a data set: found where it was made before, else made by all processes together.

    Args:
        dataset: the split.
        name: of the file, another one for every key.
        key: everything that its content depends on, in plain values.
        layout: which samples form which chunk: a plan in natural order.
        width: bytes of a sample.
        rows: chunk numbers -> the bytes of each chunk's samples, in the data set's order.
        kind: what it is, for messages and names.
        rank, world: of this process among those that call this function together.
        share: gives every process the values of all of them, by rank.
        after_chunk: called by all processes after each has made a chunk; what it raises ends the making.
        told: what a person is told before the making begins.

    Raises:
        UserError: what ``rows`` raises; a folder that cannot be written, or has too little room.
    """
    folder = kept_folder(dataset)
    path = next((path for path in (dataset.path / name, folder / name) if _is_complete(path)), None)
    path = share(path)[0] or folder / name
    parts = path.with_suffix(".parts")

    def begin() -> list[int]:
        if _is_complete(path):
            shutil.rmtree(parts, ignore_errors=True)  # of a process that was killed when it had just finished
            return []
        parts.mkdir(parents=True, exist_ok=True)
        missing = [chunk for chunk in range(layout.steps) if not _is_stored(layout, parts, chunk, width)]
        left = sum(stop - start for start, stop in map(layout.bounds, missing)) * width
        _need_room(parts, left + len(dataset) * width, kind)
        return missing

    def finish() -> None:
        if _is_complete(path):  # another job was faster
            shutil.rmtree(parts, ignore_errors=True)
            return
        digest = hashlib.sha256()
        with replacing(path) as file:
            for chunk in range(layout.steps):
                data = _stored(layout, parts, chunk, width)
                if data is None:
                    raise UserError(
                        f"chunks of the {kind.name} have gone from {parts}: start again, which makes them anew"
                    )
                digest.update(data)
                file.write(data)
        about = {**key, "count": len(dataset), "sha256": digest.hexdigest()}
        write_atomic(path.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())
        shutil.rmtree(parts, ignore_errors=True)
        _remove_abandoned(path.parent, kind)

    def first_does(work: Callable[[], Any]) -> Any:
        return _together(share, parts, kind, work if rank == 0 else lambda: None)[0]

    if not share(not _is_complete(path) or parts.exists())[0]:
        return path
    missing = first_does(begin)
    mine = missing[rank::world]
    made = iter(rows(mine)) if mine else iter(())

    def make(turn: int) -> int:
        if turn >= len(mine):
            return 0
        chunk, data = mine[turn], next(made)
        parts.mkdir(parents=True, exist_ok=True)  # another job may have finished, and tidied up
        write_atomic(parts / f"{chunk:06d}", data + _seal(layout, chunk, data))
        return len(data) // width

    counts = [stop - start for start, stop in map(layout.bounds, missing)]
    console = Console(stderr=True, quiet=rank > 0)
    if missing and told:
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    bars = conversion_progress(console, {kind.name: len(dataset)}, [len(dataset) - sum(counts)])
    with bars as (start, update):
        start()
        done = 0
        for turn in range(-(-len(missing) // world)):
            done += sum(_together(share, parts, kind, partial(make, turn)))
            update([done])
            after_chunk()
    first_does(finish)
    return path


def in_order(batch: Batch, wanted: range, kind: Kind) -> torch.Tensor:
    """Positions int64 [n] that put a chunk's samples in the data set's order.

    Raises:
        UserError: they are not exactly those ``wanted``.
    """
    order = batch.index.argsort()
    if batch.index[order].tolist() != list(wanted):
        raise UserError(f"a {kind.name} needs every sample, but a stage drops or adds some: use {kind.off}")
    return order


def _need_room(parts: Path, size: int, kind: Kind) -> None:
    """That a disk takes the chunks and, beside them, the whole.

    Raises:
        UserError: it does not.
    """
    free = shutil.disk_usage(parts).free
    if size > free:
        with contextlib.suppress(OSError):
            parts.rmdir()  # as long as nothing is in it
        raise UserError(
            f"the {kind.name} takes {size / 2**20:,.0f} MiB in {parts.parent} while it is made, and "
            f"{free / 2**20:,.0f} MiB are free: make room, or use {kind.off}"
        )


def _together(share: Callable[[Any], list[Any]], parts: Path, kind: Kind, work: Callable[[], Any]) -> list[Any]:
    """What ``work()`` gives in every process; what goes wrong in one of them is raised by all."""
    result, wrong = None, None
    try:
        result = work()
    except UserError as error:
        wrong = str(error)
    except OSError as error:
        with contextlib.suppress(OSError):
            parts.rmdir()  # as long as nothing is in it
        wrong = (
            f"cannot write the {kind.name} to {parts.parent} ({error.strerror or error}): make room or mend the "
            f"folder, then the same command continues; or use {kind.off}"
        )
    outcomes = share((result, wrong))
    for _, message in outcomes:
        if message is not None:
            raise UserError(message)
    return [result for result, _ in outcomes]


def _is_complete(path: Path) -> bool:
    return path.exists() and path.with_suffix(".json").exists()


def _remove_abandoned(folder: Path, kind: Kind) -> None:
    """Remove chunks that nobody has gone on with for long."""
    for parts in folder.glob(f"*.{kind.mark}-*.parts"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (parts, *parts.iterdir()))
            if time.time() - newest > ABANDONED:
                shutil.rmtree(parts, ignore_errors=True)


def _seal(layout: Plan, chunk: int, data: bytes) -> bytes:
    """What a chunk's file ends with: says that it is whole, and for which samples it was made."""
    return hashlib.sha256(b"%d-%d:" % layout.bounds(chunk) + data).digest()


def _is_stored(layout: Plan, parts: Path, chunk: int, width: int) -> bool:
    return _stored(layout, parts, chunk, width) is not None


def _stored(layout: Plan, parts: Path, chunk: int, width: int) -> bytes | None:
    """The bytes of a chunk that is on disk; None where it is not, is damaged or is of another layout."""
    try:
        stored = (parts / f"{chunk:06d}").read_bytes()
    except FileNotFoundError:
        return None
    start, stop = layout.bounds(chunk)
    size = (stop - start) * width
    data = stored[:size]
    return data if stored[size:] == _seal(layout, chunk, data) else None


def kept_folder(dataset: ShardSet) -> Path:
    """Where it is kept: beside the shards, or in the user's cache where that cannot be written."""
    if os.access(dataset.path, os.W_OK):
        return dataset.path
    return cache_folder("plans", dataset.fingerprint[:16])
