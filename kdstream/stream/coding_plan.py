"""A coding plan: which version the coded teacher answers for, chosen once for every sample and kept beside the shards.

One byte a sample: the JPEG quality 0..100, or :data:`ORIGINAL`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class PlanKey:
    """Everything that a plan depends on.

    Attributes:
        data: fingerprint of the split.
        teacher: the network's name (:func:`kdstream.hashing.network_name`).
        selector: its name (:func:`kdstream.stream.coded.selector_name`).
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
        choice = np.fromfile(path, np.uint8)
    except (OSError, ValueError) as error:
        raise UserError(f"no coding plan at {path} ({error}): leave plan=auto to make one") from None
    wanted = asdict(key)
    different = [f"{name} {_short(made_for.get(name))}, not {_short(wanted[name])}" for name in wanted
                 if made_for.get(name) != wanted[name]]  # fmt: skip
    if different:
        raise UserError(f"coding plan {path} was made for {'; '.join(different)}: use plan=auto, or the plan that fits")
    damaged = len(choice) != count or bool(((choice > 100) & (choice != ORIGINAL)).any())
    if damaged or hashlib.sha256(choice.tobytes()).hexdigest() != made_for.get("sha256"):
        raise UserError(f"coding plan {path} is damaged: delete it, and plan=auto makes it again")
    return torch.from_numpy(choice)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def make_plan(
    dataset: ShardSet,
    key: PlanKey,
    layout: Plan,
    choose: Callable[[Sequence[int]], Iterator[Batch]],
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """The plan for a data set: read where it was made before, else made by all processes together.

    A chunk that is done is on disk: a process that is killed and started again goes on after its last chunk.

    Args:
        dataset: the split.
        key: of the plan.
        layout: which samples form which chunk: the plan, in natural order, of the stream that ``choose`` reads.
        choose: chunk numbers -> a batch with ``quality`` for each, in the data set's order.
        rank, world: of this process among those that call this function together.
        wait: a barrier of these processes.

    Returns:
        uint8 [len(dataset)].

    Raises:
        UserError: the chain drops samples; a damaged plan; a folder that cannot be written.
    """
    path = plan_folder(dataset) / key.file_name(dataset.split)
    if not (path.exists() and path.with_suffix(".json").exists()):
        parts = path.with_suffix(".parts")
        try:
            parts.mkdir(parents=True, exist_ok=True)
            _choose_chunks(layout, parts, range(rank, layout.steps, world), choose, rank == 0)
            wait()
            if rank == 0:
                data = b"".join(_stored(layout, parts, chunk) or b"" for chunk in range(layout.steps))
                write_atomic(path, data)
                about = {**asdict(key), "count": len(dataset), "sha256": hashlib.sha256(data).hexdigest()}
                write_atomic(path.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())
                shutil.rmtree(parts, ignore_errors=True)
        except OSError as error:
            raise UserError(f"cannot write the coding plan {path} ({error.strerror}): use plan=off") from error
    wait()
    return load_plan(path, key, len(dataset))


def _choose_chunks(
    layout: Plan, parts: Path, chunks: range, choose: Callable[[Sequence[int]], Iterator[Batch]], show: bool
) -> None:
    """Make those of a process's chunks that are not on disk yet."""
    lengths = {chunk: stop - start for chunk in chunks for start, stop in [layout.bounds(chunk)]}
    missing = [chunk for chunk in chunks if _stored(layout, parts, chunk) is None]
    present = sum(lengths.values()) - sum(lengths[chunk] for chunk in missing)
    console = Console(stderr=True, quiet=not show)
    bars = conversion_progress(console, {"coding plan": sum(lengths.values())}, [present])
    with bars as (start, update):
        start()
        done = 0
        for chunk, batch in zip(missing, choose(missing) if missing else (), strict=True):
            data = _bytes(batch, range(*layout.bounds(chunk)))
            write_atomic(parts / f"{chunk:06d}", data + _seal(layout, chunk, data))
            done += len(batch)
            update([done])


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
