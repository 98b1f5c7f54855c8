"""A coding plan: which version the coded teacher answers for, chosen once for every sample and kept beside the shards.

One byte a sample: the JPEG quality 0..100, or :data:`ORIGINAL`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from kdstream.atomic import write_atomic
from kdstream.bars import conversion_progress
from kdstream.batch import Batch
from kdstream.data.cache_folder import cache_folder
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.stream.plan import Plan

ORIGINAL = 255
"""The byte for a sample whose original is used."""
CHUNK = 512
"""Samples that are chosen, and saved, together. Fixed: the teacher's rounding depends on what shares a forward pass."""

CHECKED = 1 << 24
"""Bytes of a plan that are checked together."""

ABANDONED = 60 * 24 * 3600
"""Seconds after which the chunks of a plan that was never finished may go."""


@dataclass(frozen=True)
class PlanKey:
    """Everything that a plan depends on.

    Attributes:
        data: fingerprint of the split.
        teacher: the network's name (:func:`kdstream.hashing.network_name`).
        selector: its name (:func:`kdstream.stream.planning.selector_name`).
        delta: step between qualities.
        subsampling: of the chroma.
        view: the stages that unaugmented images pass before the teacher, and how they are standardised for it.
    """

    data: str
    teacher: str
    selector: str
    delta: int
    subsampling: str
    view: str

    def file_name(self, split: str) -> str:
        """Name of the plan's file: readable, and different for every key."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        selector = re.sub(r"[^\w.-]+", ".", self.selector)[:80]
        subsampling = self.subsampling.replace(":", "")
        return f"{split}.coding-{self.teacher[:8]}-{selector}-d{self.delta}-{subsampling}-{digest}.bin"


def load_plan(path: Path, key: PlanKey, count: int) -> torch.Tensor:
    """A stored plan.

    Args:
        path: of the file; its key lies beside it, as JSON.
        key: what the plan must have been made for.
        count: number of samples.

    Returns:
        uint8 [count].

    Raises:
        UserError: no such plan, one that was made for something else (the message says what differs), a damaged one.
    """
    try:
        made_for = json.loads(path.with_suffix(".json").read_text())
        # Mapped, not read: a byte a sample, which all processes of a machine share.
        choice = np.memmap(path, np.uint8, "c") if path.stat().st_size else np.zeros(0, np.uint8)
    except (OSError, ValueError) as error:
        raise UserError(f"no coding plan at {path} ({error}): leave plan=auto to make one") from None
    wanted = asdict(key)
    different = [f"{name} {_short(made_for.get(name))}, not {_short(wanted[name])}" for name in wanted
                 if made_for.get(name) != wanted[name]]  # fmt: skip
    if different:
        raise UserError(f"coding plan {path} was made for {'; '.join(different)}: use plan=auto, or the plan that fits")
    digest, damaged = hashlib.sha256(), len(choice) != count
    for start in range(0, len(choice), CHECKED):
        part = choice[start : start + CHECKED]
        damaged = damaged or bool(((part > 100) & (part != ORIGINAL)).any())
        digest.update(part.data)
    if damaged or digest.hexdigest() != made_for.get("sha256"):
        raise UserError(f"coding plan {path} is damaged: delete it, and plan=auto makes it again")
    return torch.from_numpy(choice)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def alone(value: Any) -> list[Any]:
    """What all processes share where there is one."""
    return [value]


def make_plan(
    dataset: ShardSet,
    key: PlanKey,
    layout: Plan,
    choose: Callable[[Sequence[int]], Iterator[Batch]],
    rank: int = 0,
    world: int = 1,
    share: Callable[[Any], list[Any]] = alone,
    after_chunk: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """The plan for a data set: read where it was made before, else made by all processes together.

    A chunk that is done is on disk: a process that is killed and started again goes on after its last chunk.

    Args:
        dataset: the split.
        key: of the plan.
        layout: which samples form which chunk: the plan, in natural order, of the stream that ``choose`` reads.
        choose: chunk numbers -> a batch with ``quality`` for each, in the data set's order.
        rank, world: of this process among those that call this function together.
        share: gives every process the values of all of them, by rank.
        after_chunk: called by all processes after each has made a chunk; what it raises ends the making.

    Returns:
        uint8 [len(dataset)].

    Raises:
        UserError: the chain drops samples; a damaged plan; a folder that cannot be written.
    """
    name = key.file_name(dataset.split)
    path = next((path for path in (dataset.path / name, plan_folder(dataset) / name) if _is_complete(path)), None)
    path = share(path)[0] or plan_folder(dataset) / name
    parts = path.with_suffix(".parts")

    def begin() -> list[int]:
        if _is_complete(path):
            shutil.rmtree(parts, ignore_errors=True)  # of a process that was killed when it had just finished
            return []
        parts.mkdir(parents=True, exist_ok=True)
        return [chunk for chunk in range(layout.steps) if _stored(layout, parts, chunk) is None]

    def finish() -> None:
        if _is_complete(path):  # another job was faster
            shutil.rmtree(parts, ignore_errors=True)
            return
        stored = [_stored(layout, parts, chunk) for chunk in range(layout.steps)]
        chunks = [chunk for chunk in stored if chunk is not None]
        if len(chunks) < len(stored):
            raise UserError(f"chunks of the coding plan have gone from {parts}: start again, which makes them anew")
        data = b"".join(chunks)
        write_atomic(path, data)
        about = {**asdict(key), "count": len(dataset), "sha256": hashlib.sha256(data).hexdigest()}
        write_atomic(path.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())
        shutil.rmtree(parts, ignore_errors=True)
        _remove_abandoned(path.parent)

    def first_does(work: Callable[[], Any]) -> Any:
        return _together(share, parts, work if rank == 0 else lambda: None)[0]

    if share(not _is_complete(path) or parts.exists())[0]:
        missing = first_does(begin)
        mine = missing[rank::world]
        batches = iter(choose(mine)) if mine else iter(())

        def make(turn: int) -> int:
            if turn >= len(mine):
                return 0
            chunk = mine[turn]
            data = _bytes(next(batches), range(*layout.bounds(chunk)))
            parts.mkdir(parents=True, exist_ok=True)  # another job may have made the plan, and tidied up
            write_atomic(parts / f"{chunk:06d}", data + _seal(layout, chunk, data))
            return len(data)

        counts = [stop - start for start, stop in map(layout.bounds, missing)]
        bars = conversion_progress(
            Console(stderr=True, quiet=rank > 0), {"coding plan": len(dataset)}, [len(dataset) - sum(counts)]
        )
        with bars as (start, update):
            start()
            done = 0
            for turn in range(-(-len(missing) // world)):
                done += sum(_together(share, parts, partial(make, turn)))
                update([done])
                after_chunk()
        first_does(finish)
    return load_plan(path, key, len(dataset))


def _together(share: Callable[[Any], list[Any]], parts: Path, work: Callable[[], Any]) -> list[Any]:
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
            f"cannot write the coding plan to {parts.parent} ({error.strerror or error}): make room or mend the "
            "folder, then the same command continues; or use plan=off"
        )
    outcomes = share((result, wrong))
    for _, message in outcomes:
        if message is not None:
            raise UserError(message)
    return [result for result, _ in outcomes]


def _is_complete(path: Path) -> bool:
    return path.exists() and path.with_suffix(".json").exists()


def _remove_abandoned(folder: Path) -> None:
    """Remove the chunks of plans that nobody has gone on with for long."""
    for parts in folder.glob("*.coding-*.parts"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (parts, *parts.iterdir()))
            if time.time() - newest > ABANDONED:
                shutil.rmtree(parts, ignore_errors=True)


def _bytes(batch: Batch, wanted: range) -> bytes:
    """The choices for these samples, a byte each."""
    order = batch.index.argsort()
    if batch.quality is None or batch.index[order].tolist() != list(wanted):
        raise UserError("a coding plan needs every sample, but a stage drops or adds some: use plan=off")
    quality = batch.quality[order].cpu()
    return torch.where(quality < 0, ORIGINAL, quality).to(torch.uint8).numpy().tobytes()


def _seal(layout: Plan, chunk: int, data: bytes) -> bytes:
    """What a chunk's file ends with: says that it is whole, and for which samples it was made."""
    return hashlib.sha256(b"%d-%d:" % layout.bounds(chunk) + data).digest()


def _stored(layout: Plan, parts: Path, chunk: int) -> bytes | None:
    """The choices of a chunk that is on disk; None where it is not, is damaged or is of another layout."""
    try:
        stored = (parts / f"{chunk:06d}").read_bytes()
    except FileNotFoundError:
        return None
    start, stop = layout.bounds(chunk)
    data = stored[: stop - start]
    return data if stored[stop - start :] == _seal(layout, chunk, data) else None


def plan_folder(dataset: ShardSet) -> Path:
    """Where plans of a data set are kept: beside its shards, or in the user's cache where that cannot be written."""
    if os.access(dataset.path, os.W_OK):
        return dataset.path
    return cache_folder("plans", dataset.fingerprint[:16])
