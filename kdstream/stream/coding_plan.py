"""A coding plan: which version the coded teacher answers for, chosen once for every sample and kept beside the shards.

One byte a sample: the JPEG quality 0..100, or :data:`ORIGINAL`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kdstream.batch import Batch
from kdstream.data.shards import ShardSet
from kdstream.stream.kept_rows import CHECKED, Kind, alone, damaged, in_order, make_kept, read_kept
from kdstream.stream.plan import Plan

ORIGINAL = 255
"""The byte for a sample whose original is used."""
PLAN = Kind("coding plan", "coding", "plan=auto", "plan=off")


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
    choice = read_kept(path, asdict(key), count, 1, PLAN)[:, 0]
    for part in choice.split(CHECKED):
        if bool(((part > 100) & (part != ORIGINAL)).any()):
            raise damaged(path, PLAN)
    return choice


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

    Args:
        dataset: the split.
        key: of the plan.
        layout: which samples form which chunk: the plan, in natural order, of the stream that ``choose`` reads.
        choose: chunk numbers -> a batch with ``quality`` for each, in the data set's order.
        rank, world, share, after_chunk: see :func:`kdstream.stream.kept_rows.make_kept`.

    Returns:
        uint8 [len(dataset)].

    Raises:
        UserError: the chain drops samples; a damaged plan; a folder that cannot be written.
    """

    def rows(chunks: Sequence[int]) -> Iterator[bytes]:
        for chunk, batch in zip(chunks, choose(chunks), strict=True):
            order = in_order(batch, range(*layout.bounds(chunk)), PLAN)
            assert batch.quality is not None
            yield quality_bytes(batch.quality[order]).numpy().tobytes()

    place: dict[str, Any] = {"rank": rank, "world": world, "share": share, "after_chunk": after_chunk}
    path = make_kept(dataset, key.file_name(dataset.split), asdict(key), layout, 1, rows, PLAN, **place)
    return load_plan(path, key, len(dataset))


def quality_bytes(quality: torch.Tensor) -> torch.Tensor:
    """Qualities int64 [n], -1 = the original, as a plan has them: uint8 [n] on the CPU."""
    quality = quality.cpu()
    return torch.where(quality < 0, ORIGINAL, quality).to(torch.uint8)
