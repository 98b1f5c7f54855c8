"""Answers: what a teacher says of fixed views, asked once for every sample and kept beside the shards.

A run that finds them makes no teacher pass. A row holds float32 logits, then float32 features that are one vector a
sample, then, where a coded teacher answered, a byte for the quality of the version that it saw (as a coding plan).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdstream.batch import Batch, Outputs
from kdstream.data.faults import Faults
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.hashing import Unnamed
from kdstream.stream.cache import SHARE, Decoded
from kdstream.stream.coded import Random
from kdstream.stream.coding_plan import ORIGINAL, quality_bytes
from kdstream.stream.kept_rows import CHUNK, Kind, alone, in_order, kept_folder, make_kept, read_kept
from kdstream.stream.plan import Plan
from kdstream.stream.planning import passed, selector_name, shares, teacher_name, view_name
from kdstream.stream.stage import Chain, Stage, batch_stage

ANSWERS = Kind("cache of teacher answers", "answers", "cache=auto", "teacher(cache=off)")


@dataclass(frozen=True)
class AnswersKey:
    """Everything that kept answers depend on.

    Attributes:
        data: fingerprint of the split.
        teacher: the network's name (:func:`kdstream.hashing.network_name`).
        taps: module path of each feature.
        view: the stages before the teacher, with the selectors of coded ones, and how images are standardised.
        row: what a row holds, as "logits 10, penultimate 64, quality".
    """

    data: str
    teacher: str
    taps: str
    view: str
    row: str

    def file_name(self, split: str) -> str:
        """Name of the file: different for every key."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]
        return f"{split}.answers-{self.teacher[:8]}-{digest}.bin"


@dataclass(frozen=True)
class Row:
    """How a sample's answer stands in its bytes.

    Attributes:
        floats: name -> how many; "logits" first.
        quality: whether a byte for the quality follows.
    """

    floats: dict[str, int]
    quality: bool

    @classmethod
    def of(cls, batch: Batch) -> Row:
        """That of an answered batch.

        Raises:
            UserError: features that are no vectors, which would be too much to keep.
        """
        answer = batch.teacher
        assert answer is not None
        for name, value in answer.features.items():
            if value.dim() != 2:
                shape = "x".join(map(str, value.shape[1:]))
                raise UserError(
                    f"teacher: cache=auto keeps logits and features of one vector a sample, as penultimate, but the "
                    f"loss reads {name!r}, {shape} a sample: leave cache=auto out"
                )
        values = {"logits": answer.logits, **answer.features}
        return cls({name: value.shape[1] for name, value in values.items()}, batch.quality is not None)

    @property
    def width(self) -> int:
        """Bytes of a sample."""
        return 4 * sum(self.floats.values()) + self.quality

    def __str__(self) -> str:
        return ", ".join([f"{name} {size}" for name, size in self.floats.items()] + ["quality"] * self.quality)

    def pack(self, batch: Batch, order: Tensor) -> bytes:
        """The rows of a batch's samples in this order."""
        answer = batch.teacher
        assert answer is not None
        values = [answer.logits, *(answer.features[name] for name in list(self.floats)[1:])]
        packed = torch.cat([value[order].float().cpu() for value in values], 1).contiguous().view(torch.uint8)
        if batch.quality is not None:
            packed = torch.cat([packed, quality_bytes(batch.quality[order])[:, None]], 1)
        return packed.numpy().tobytes()

    def unpack(self, rows: Tensor) -> tuple[Outputs, Tensor | None]:
        """The answer, and int64 [n] of qualities, of rows uint8 [n,width]."""
        size = 4 * sum(self.floats.values())
        values = rows[:, :size].contiguous().view(torch.float32).split(list(self.floats.values()), 1)
        logits, *features = (value.contiguous() for value in values)
        answer = Outputs(logits, dict(zip(list(self.floats)[1:], features, strict=True)))
        if not self.quality:
            return answer, None
        quality = rows[:, -1].long()
        return answer, quality.masked_fill(quality == ORIGINAL, -1)


@batch_stage(role="teacher")
def kept_answers(batches: Iterator[Batch], data: Tensor, row: Row) -> Iterator[Batch]:
    """Batches with the kept answers for their samples.

    Args:
        batches: of the split.
        data: uint8 [number of samples,row.width].
        row: how to read it.
    """
    for batch in batches:
        rows = data.index_select(0, batch.index.to(data.device)).to(batch.index.device, non_blocking=True)
        answer, quality = row.unpack(rows)
        yield replace(batch, teacher=answer, quality=quality, variants=None, qualities=None, selector=None)


def wants_answers(chain: Chain) -> bool:
    """Whether the chain's teacher is to answer from what is kept.

    Raises:
        UserError: the views before the teacher are drawn anew in every epoch; a setting that there is not.
    """
    for position, stage in enumerate(chain.stages):
        if stage.role != "teacher":
            continue
        asked = stage.setting("cache")
        if asked in ("off", False, None):  # YAML reads `off` as False
            continue
        if asked != "auto":
            raise UserError(f"teacher: cache is {asked!r}; it is auto or off")
        moving = next((one for one in chain.stages[:position] if _draws(one)), None)
        if moving is not None:
            raise UserError(
                f"teacher: cache=auto is not possible: {moving.name}, which stands before it, draws at random, so that "
                "no view comes again: leave cache=auto out, or put teacher before it (the student then sees other "
                "views than the teacher)"
            )
        return True
    return False


def _draws(stage: Stage) -> bool:
    selector = stage.settings.get("selector") if stage.role == "coded" else None
    return stage.random or (isinstance(selector, Random) and selector.low != selector.high)


def with_answers(
    written: Chain,
    chain: Chain,
    known: Mapping[str, Any],
    dataset: ShardSet,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    device: torch.device | str = "cpu",
    faults: Faults | None = None,
    kept: Decoded | None = None,
    after_chunk: Callable[[], None] = lambda: None,
) -> Chain:
    """The chain whose teacher answers from what is kept, which is made first where it is missing.

    Where torch.distributed is up, all processes must call it together.

    Args:
        written: the chain as the user wrote it, by which answers are named.
        chain: the same after :func:`kdstream.stream.planning.with_plans`, which is run.
        known, dataset, rank, world, workers, device, faults, kept, after_chunk: as there.

    Raises:
        UserError: views that are drawn anew in every epoch, features that are no vectors, a chain without a lasting
            name, answers that cannot be made or kept.
    """
    if not wants_answers(written):
        return chain
    device = torch.device(device)
    position = chain.roles.index("teacher")
    # As it runs, but for the cache: it answers itself here.
    asking = replace(chain.stages[position], settings={**chain.stages[position].settings, "cache": "off"})
    view = Chain((*chain.stages[:position], asking))
    pair = Plan(len(dataset), min(2, len(dataset)), 0, shuffle=False)
    first = next(passed(view, dataset, pair, kept, 0, device, faults, [0]), None)
    if first is None or not len(first):
        raise UserError(f"a {ANSWERS.name} needs every sample, but a stage drops or adds some: use {ANSWERS.off}")
    row = Row.of(first)
    key = _key(written, position, known, dataset, row)
    layout = Plan(len(dataset), CHUNK, 0, shuffle=False)

    def rows(chunks: Sequence[int]) -> Iterator[bytes]:
        made = passed(view, dataset, layout, kept, workers, device, faults, chunks)
        for chunk, batch in zip(chunks, made, strict=True):
            yield row.pack(batch, in_order(batch, range(*layout.bounds(chunk)), ANSWERS))

    share = shares(world)
    place: dict[str, Any] = {"rank": rank, "world": world} if share is not alone else {}
    place |= {"share": share, "after_chunk": after_chunk}
    size = f"{len(dataset):,} x ({row}) = {len(dataset) * row.width / 2**20:,.1f} MiB"
    told = f"teacher answers to be kept in {kept_folder(dataset)}: {size}"
    make = partial(make_kept, dataset, key.file_name(dataset.split), asdict(key), layout, row.width, rows, ANSWERS)
    path = make(**place, told=told)
    data = _near(read_kept(path, asdict(key), len(dataset), row.width, ANSWERS), device)
    before = [stage for stage in chain.stages[:position] if stage.role != "coded"]
    return Chain((*before, kept_answers(data=data, row=row), *chain.stages[position + 1 :]))


def _near(data: Tensor, device: torch.device) -> Tensor:
    """On the device where it takes little of the memory that is free there; else mapped from the file."""
    if device.type != "cuda" or data.nbytes > SHARE * torch.cuda.mem_get_info(device)[0]:
        return data
    return data.to(device)


def _key(written: Chain, position: int, known: Mapping[str, Any], dataset: ShardSet, row: Row) -> AnswersKey:
    name = teacher_name(known)
    named = written.bind({**known, "teacher": name, "dataset": dataset.fingerprint}).stages[:position]
    try:
        view = view_name(Chain(named))
        selectors = [selector_name(stage.settings["selector"]) for stage in named if stage.role == "coded"]
    except Unnamed as error:
        raise UserError(
            f"teacher: cache=auto is not possible, since answers are kept by the name of all that they depend on: "
            f"{error}; leave cache=auto out, or give that object a method named_by() that returns plain values"
        ) from None
    taps = known.get("teacher_taps") or getattr(known["teacher"], "paths", {})
    return AnswersKey(
        data=dataset.fingerprint,
        teacher=name,
        taps=", ".join(f"{tap}={path}" for tap, path in taps.items()),
        view=f"{view}, selectors {selectors}, mean {list(known['teacher_mean'])}, std {list(known['teacher_std'])}, "
        f"precision {known.get('precision', 'no')}",
        row=str(row),
    )
