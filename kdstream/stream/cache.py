"""cache: a split whose images have one size, decoded once and kept in memory; a batch is then a gather."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from rich.console import Console
from torch import Tensor

from kdstream.bars import reading_progress
from kdstream.batch import Batch, Sample
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.rng import sample_keys
from kdstream.stream.decode import decode
from kdstream.stream.host_memory import Piece, free_memory, mapped, new_piece
from kdstream.stream.kept_rows import alone
from kdstream.stream.loader import Loader, Reader
from kdstream.stream.plan import Plan
from kdstream.stream.stage import Chain, stage

Where = Literal["auto", "off", "host", "device"]
"""Where a decoded split is kept: in main memory, on the device of the batches, nowhere; "auto" = where it fits."""
SHARE = 0.25
"""The share of the free memory, the device's or the host's, that "auto" gives a decoded split at most."""
CHUNK = 1 << 22
"""Bytes of pixels that are decoded, and told of, together."""
BRIEF = 1 << 24
"""Bytes of pixels that are decoded sooner than reader processes have started."""
BLOCK = 1 << 14
"""Samples whose order is worked out together."""


@dataclass(frozen=True)
class Decoded:
    """A split in memory.

    Attributes:
        image: uint8 [N,3,H,W].
        label: int64 [N].
        made_by: the stages that made it, by what decides what they do.
    """

    image: Tensor
    label: Tensor
    made_by: Any

    def serves(self, host: Chain) -> bool:
        """Whether it holds what these stages give."""
        return self.made_by == _named(host)


def obstacle(host: Chain, dataset: ShardSet) -> str | None:
    """Why what a chain's stages on the host give cannot be kept as one tensor; None: it can.

    It can where they are ``decode``, alone or before ``augment(eval, SIZE)``: then a sample gives the same pixels in
    every epoch, and all of one size.
    """
    first, *rest = host.stages or (None,)
    if first is None or first.function is not decode.function:
        return "the chain does not begin with decode"
    for step in rest:
        if step.role != "box" or step.random:
            what = "draws at random" if step.random else "may do anything to a sample"
            return f"stage {step.name} works on the host and {what}"
    if not rest and dataset.image_size is None:
        return f"the images of {dataset.name}/{dataset.split} differ in size"
    return None


def _shape(host: Chain, dataset: ShardSet) -> tuple[int, int]:
    """(height, width) of what the host's stages give."""
    last = host.stages[-1]
    size = dataset.image_size if last.role != "box" else (last.setting("size"),) * 2
    assert size is not None
    return size


def _named(host: Chain) -> Any:
    return [step.named_by() for step in host.stages]


def decoded(
    wanted: Where,
    dataset: ShardSet,
    host: Chain,
    *,
    workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    share: Callable[[Any], list[Any]] = alone,
    after_chunk: Callable[[], None] = lambda: None,
) -> tuple[Decoded | None, str]:
    """The decoded split: what the open data set has of it already, or made now.

    All processes among which ``share`` shares must call it together. Those of one host decode a part each, into memory
    that all of them use.

    Args:
        wanted: see :data:`Where`.
        dataset: the split; it keeps what is made.
        host: the stages that run on the host.
        workers: reader processes that decode, of this process.
        device: of the batches.
        rank: of this process among those.
        share: gives every process the values of all of them, by rank.
        after_chunk: called by all processes after each has decoded a chunk; what it raises ends the work.

    Returns:
        The split, or None, and a line that says where it is kept, or why it is not.

    Raises:
        UserError: what is wanted is not possible; a sample that cannot be decoded, or is of another size.
    """
    if wanted == "off":
        return None, "not cached, as cache=off says"
    reason = obstacle(host, dataset)
    if reason is not None:
        return None, not_kept(wanted, reason)
    device = torch.device(device)
    places = {"device": "host" if device.type == "cpu" else str(device), "host": "host"}

    def kept(place: str) -> Decoded | None:
        found = dataset.decoded.get((dataset.fingerprint, places[place]))
        return found if isinstance(found, Decoded) and found.serves(host) else None

    height, width = _shape(host, dataset)
    size = len(dataset) * (3 * height * width + 8)
    piece = None if share is alone else new_piece(size)
    try:
        have = [place for place in places if kept(place) is not None]
        fitting = [*have, *_fitting(size, device, SHARE if wanted == "auto" else 1.0)]
        told = share((fitting, have, piece))
        allowed = places if wanted == "auto" else (wanted,)
        place = next((place for place in allowed if all(place in fitting for fitting, _, _ in told)), None)
        told_size = f"{size / 2**20:,.1f} MiB"
        if place is None:
            name = f"{dataset.name}/{dataset.split}"
            return None, not_kept(wanted, f"{name} takes {told_size}, which is too much of the memory that is free")
        if any(place not in have for _, have, _ in told):
            made = kept("host") if all("host" in have for _, have, _ in told) else None
            if made is None:
                pieces = [piece for _, _, piece in told]
                made = _make(dataset, host, (height, width), workers, rank, pieces, share, after_chunk)
            dataset.decoded[dataset.fingerprint, places[place]] = made if place == "host" else _moved(made, device)
    finally:
        if piece is not None:
            piece.close()
    where = "on the host" if places[place] == "host" else f"on {device}"
    return kept(place), f"cached {where}: {len(dataset):,} images of {height}x{width}, {told_size}"


def not_kept(wanted: Where, reason: str) -> str:
    """The line that says why a split is not kept.

    Raises:
        UserError: it should be, and cannot be, for this reason.
    """
    if wanted == "off":
        return "not cached, as cache=off says"
    if wanted == "auto":
        return f"not cached: {reason}"
    raise UserError(f"cache={wanted} is not possible: {reason}; use cache=auto or cache=off")


def _fitting(size: int, device: torch.device, share: float) -> list[str]:
    """Where so many bytes are at most this share of the free memory; on their way to a device they pass the host's."""
    if size > share * free_memory():
        return []
    fits = device.type != "cuda" or size <= share * torch.cuda.mem_get_info(device)[0]
    return ["device", "host"] if fits else ["host"]


def _moved(made: Decoded, device: torch.device) -> Decoded:
    try:
        return Decoded(made.image.to(device), made.label.to(device), made.made_by)
    except torch.OutOfMemoryError:
        raise UserError(f"cache=device: there is not enough memory on {device}: use cache=host") from None


def _make(
    dataset: ShardSet,
    host: Chain,
    size: tuple[int, int],
    workers: int,
    rank: int,
    pieces: Sequence[Piece | None],
    share: Callable[[Any], list[Any]],
    after_chunk: Callable[[], None],
) -> Decoded:
    """Decode the split, together with the other processes of this host."""
    count, pixels = len(dataset), 3 * math.prod(size)
    memory, group = _memory(rank, pieces, count * (8 + pixels), share)
    label, image = memory[: 8 * count].view(torch.int64), memory[8 * count :].view(count, 3, *size)
    name = f"{dataset.name}/{dataset.split}"
    layout = Plan(count, max(1, min(count, CHUNK // pixels)), 0, shuffle=False)
    mine = range(group.index(rank), layout.steps, len(group))
    # Readers hand over what they decode in shared memory, of which there may be too little.
    readers = 0 if count * pixels < BRIEF * len(group) or not mine else workers
    reader = Reader(dataset, layout, host | _of_size(size=size, name=name), 0, 1)
    try:
        loader = Loader(reader, readers, torch.device("cpu"))
        loader.check(0, mine)
    except UserError:
        loader = Loader(reader, 0, torch.device("cpu"))
    batches = loader.batches(0, mine)

    def decode_next() -> int:
        batch = next(batches, None)
        if batch is None:
            return 0
        first = int(batch.index[0])
        image[first : first + len(batch)] = batch.image
        label[first : first + len(batch)] = batch.label
        return batch.image.nbytes

    turns = -(-layout.steps // min(share(len(group))))
    with reading_progress(count * pixels, f"decoding {name}", Console(stderr=True, quiet=rank > 0)) as advance:
        for _ in range(turns):
            outcomes = share(_outcome(decode_next))
            for _, wrong in outcomes:
                if wrong is not None:
                    raise UserError(wrong)
            advance(sum(outcomes[other][0] for other in group))
            after_chunk()
    return Decoded(image, label, _named(host))


def _memory(
    rank: int, pieces: Sequence[Piece | None], size: int, share: Callable[[Any], list[Any]]
) -> tuple[Tensor, list[int]]:
    """Memory for a split, uint8 [size], and the processes that have it together."""
    own, memory, first = pieces[rank], None, 0
    if own is not None:
        first = next(other for other, piece in enumerate(pieces) if piece is not None and piece.host == own.host)
        memory = mapped(cast(Piece, pieces[first]))
    owners = share(-1 - rank if memory is None else first)
    group = [other for other, owner in enumerate(owners) if owner == owners[rank]]
    return torch.empty(size, dtype=torch.uint8) if memory is None else memory, group


def _outcome(work: Callable[[], int]) -> tuple[int, str | None]:
    try:
        return work(), None
    except UserError as error:
        return 0, str(error)


@stage
def _of_size(samples: Iterator[Sample], size: tuple[int, int], name: str) -> Iterator[Sample]:
    """Samples whose image has this (height, width).

    Raises:
        UserError: one has not.
    """
    for sample in samples:
        found = tuple(sample["image"].shape[-2:])
        if found != size:
            raise UserError(
                f"sample {sample['__key__']!r} of {sample['__url__']} has {found[0]}x{found[1]} pixels, but all images "
                f"of {name} are said to have {size[0]}x{size[1]}: make the shards again, or use cache=off"
            )
        yield sample


def loader_of(reader: Reader, kept: Decoded | None, workers: int, device: torch.device) -> Loader | CacheLoader:
    """What makes a plan's batches: from memory where the split is kept there as the reader's chain makes it, else from
    shards."""
    if kept is not None and kept.serves(reader.chain):
        return CacheLoader(kept, reader.plan, reader.rank, reader.world, device)
    return Loader(reader, workers, device)


class CacheLoader:
    """Batches from a decoded split, as :class:`~kdstream.stream.loader.Loader` makes them from shards.

    Args:
        kept: the decoded split.
        plan, rank, world: as for :class:`~kdstream.stream.loader.Reader`.
        device: where the batches will go; for CUDA those from main memory are handed over in page-locked memory.
    """

    def __init__(self, kept: Decoded, plan: Plan, rank: int, world: int, device: torch.device):
        self.kept, self.plan, self.device = kept, plan, device
        self.place = (rank, world) if plan.shuffle else (0, 1)

    def check(self, epoch: int, steps: Sequence[int]) -> None:
        """Nothing is needed that may be short."""

    def batches(self, epoch: int, steps: Sequence[int]) -> Iterator[Batch]:
        """The batches of these steps, in order. Their tensors are copies, which a stage may change in place."""
        many = max(1, BLOCK // self.plan.batch_size)
        for start in range(0, len(steps), many):
            parts = self.plan.batches(epoch, steps[start : start + many], *self.place)
            sizes = [len(part) for part in parts]
            index = torch.cat(parts)
            key = sample_keys(self.plan.seed, epoch, index)
            here = self.kept.image.device
            pinned = self.device.type == "cuda"
            if pinned:
                index, key = index.pin_memory(), key.pin_memory()
            index, key = index.to(here, non_blocking=True), key.to(here, non_blocking=True)
            label = self.kept.label[index]
            pinned = pinned and here.type == "cpu"
            label = label.pin_memory() if pinned else label
            for part in zip(*(tensor.split(sizes) for tensor in (index, label, key)), strict=True):
                yield Batch(self._images(part[0], pinned), label=part[1], index=part[0], rng_key=part[2])

    def _images(self, index: Tensor, pinned: bool) -> Tensor:
        source = self.kept.image
        if not pinned:
            return source.index_select(0, index)
        target = torch.empty(len(index), *source.shape[1:], dtype=torch.uint8, pin_memory=True)
        return torch.index_select(source, 0, index, out=target)
