"""Order of shards: each process reads its own shards one after the other, shuffled within a buffer.

For sets that are larger than the disk, or that nobody has indexed. Built of webdataset's pieces: SimpleShardList, the
split by process and then by reader, the buffer of shuffle; shards are opened by kdstream (no command, no pickle).

What it promises: batches depend on (set, seed, epoch, number of processes) alone; every process has the same number of
batches; no sample is seen twice in an epoch; a training that was interrupted goes on with the batches that it would
have seen. What it does not: all samples in an epoch (a batch that would not be full on every process is left out, how
much that is is told), one order for any number of processes, batches of samples from all shards.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice, pairwise
from typing import Any

import torch

from kdstream.batch import Batch, Sample
from kdstream.data.altered import Altered
from kdstream.data.faults import Faults
from kdstream.data.held_out import Part
from kdstream.errors import UserError
from kdstream.rng import sample_keys, words
from kdstream.stream.boxes import BoxReader
from kdstream.stream.loader import Reader, sample_bytes
from kdstream.stream.plan import Plan
from kdstream.stream.stage import Chain

LANES = (8, 4, 2, 1)
"""Into so many lines a process's shards are dealt out, which readers follow side by side: the most that cost no more
than a fiftieth of the batches."""
BUFFER = 1000
"""Samples of each line among which the next is drawn."""


class Unknown(UserError, TypeError):
    """How many batches an epoch has is not known. (A TypeError, too: Python takes that for having no length.)"""


@dataclass(frozen=True)
class SequentialPlan(Plan):
    """How many batches an epoch has, and who reads which shards.

    Attributes:
        names: of the shards.
        counts: how many samples each has; None = unknown.
        world: processes.
        lanes: of each, which take turns in making its batches.
        length: batches in an epoch; None = unknown.
    """

    names: tuple[str, ...] = ()
    counts: tuple[int, ...] | None = None
    world: int = 1
    lanes: int = 1
    length: int | None = None

    @property
    def steps(self) -> int:
        """Batches of an epoch, the same for every process.

        Raises:
            Unknown: nobody has counted the samples.
        """
        if self.length is None:
            raise Unknown("how many batches an epoch has is known of sets with a dataset.json only: read to the end")
        return self.length

    def notes(self) -> list[str]:
        """What a user should know, a line each."""
        if self.length is None:
            return ["order=sequential: samples that fill no batch at the end of each epoch are left out, uncounted"]
        left_out = self.size - self.length * self.batch_size
        return [f"order=sequential: {left_out:,} of {self.size:,} samples, which fill no batch, miss each epoch"]

    def slice(self, rank: int) -> int:
        """Samples of a batch that a process gets."""
        return self._cut(self.batch_size, rank + 1, self.world) - self._cut(self.batch_size, rank, self.world)

    def smallest_slice(self, world: int) -> int:
        """The fewest samples that one of the processes gets in any step."""
        return min(map(self.slice, range(world)))

    def bounds(self, step: int) -> tuple[int, int]:
        """All batches are full."""
        if self.length is not None and not 0 <= step < self.length:
            raise IndexError(f"step {step} of {self.length}")
        return step * self.batch_size, (step + 1) * self.batch_size

    def batch(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> torch.Tensor:
        """Only a reader knows."""
        raise NotImplementedError("which samples a batch is made of is known when it is read")

    def of_lane(self, rank: int, lane: int) -> list[str]:
        """The shards of a lane, the same in every epoch: what a machine has in its cache stays of use."""
        return _dealt(self._shuffled(), rank, self.world, lane, self.lanes)

    def draw(self, epoch: int, lane: int, salt: str) -> int:
        """A seed for webdataset."""
        return int(words(sample_keys(self.seed, epoch, torch.tensor([lane])), 1, salt)[0, 0])

    def _shuffled(self) -> list[str]:
        import webdataset as wds

        return [shard["url"] for shard in wds.SimpleShardList(list(self.names), seed=self.draw(0, 0, "shards"))]

    def with_lanes(self) -> SequentialPlan:
        """The plan with the number of its lanes, and of its batches."""
        if self.counts is None:
            return replace(self, lanes=next((one for one in LANES if 8 * one * self.world <= len(self.names)), 1))
        possible = [one for one in LANES if one * self.world <= len(self.names)]
        shuffled, held = self._shuffled(), dict(zip(self.names, self.counts, strict=True))

        def length(lanes: int) -> int:
            return min(
                sum(held[name] for name in _dealt(shuffled, rank, self.world, lane, lanes)) // self.slice(rank) * lanes
                + lane
                for rank in range(self.world)
                for lane in range(lanes)
            )

        lengths = {one: length(one) for one in possible}
        lanes = next(one for one, found in lengths.items() if found >= 0.98 * lengths[1])
        return replace(self, lanes=lanes, length=lengths[lanes])


def _dealt(shuffled: list[str], rank: int, world: int, lane: int, lanes: int) -> list[str]:
    """The shards of a lane: split by process, then by lane, as webdataset splits by node and worker."""
    return list(islice(islice(shuffled, rank, None, world), lane, None, lanes))


def sequential_plan(dataset: Any, batch_size: int, seed: int, world: int, group: int = 1) -> SequentialPlan:
    """The plan for a set.

    Args:
        dataset: a :class:`~kdstream.data.shard_set.ShardSet`, or a :class:`~kdstream.data.listing.Listing`.
        batch_size, seed, group: see :class:`~kdstream.stream.plan.Plan`.
        world: processes.

    Raises:
        UserError: fewer shards than processes, or too few samples for a batch; shards that are not read as they are.
    """
    if isinstance(dataset, Altered | Part):
        raise UserError("order=sequential reads the shards as they are: leave out label_noise, imbalance and hold_out")
    names, counts = tuple(dataset.shard_places), dataset.counts()
    place = f"{dataset.name}/{dataset.split}"
    if len(names) < world:
        raise UserError(
            f"{place} has {len(names)} shards, which cannot be dealt out to {world} processes: make more (kdstream "
            "shards --shard-count), use fewer processes, or leave out order=sequential"
        )
    known = None if counts is None else tuple(counts.tolist())
    size = batch_size if known is None else max(sum(known), 1)
    plan = SequentialPlan(size, batch_size, seed, group=group, names=names, counts=known, world=world).with_lanes()
    if plan.length == 0:
        raise UserError(
            f"{place}: its shards, dealt out to {world} processes, do not make one batch of {batch_size}: lower "
            "batch_size, or leave out order=sequential"
        )
    return plan


@dataclass
class _Taken:
    """A sample on its way through the buffer: its bytes, or nothing yet."""

    number: int
    sample: Sample | None


@dataclass
class _Lane:
    """One line of shards in one epoch.

    Attributes:
        epoch: counted from 0.
        turn: of the next batch.
        reads: whether samples are read as they come; False while those are passed over that were seen before.
    """

    epoch: int
    turn: int = 0
    reads: bool = False
    samples: Iterator[_Taken] = field(default_factory=lambda: iter(()))


class SequentialReader(Reader):
    """Makes one process's slice of batch (epoch, step) from where it is in its shards; what it has passed already, it
    goes through again without reading it."""

    def __init__(
        self,
        shards: Any,
        plan: SequentialPlan,
        chain: Chain,
        rank: int,
        world: int,
        faults: Faults | None = None,
        buffer: int = BUFFER,
        boxes: BoxReader | None = None,
    ):
        super().__init__(shards, plan, chain, rank, world, faults, boxes=boxes)
        self.shards: Any = shards
        self.line, self.buffer = plan, buffer
        self._numbers = {name: number for number, name in enumerate(plan.names)}
        self._ranges = [range(*ends) for ends in pairwise(accumulate(plan.counts or (), initial=0))]
        self._ahead = True
        self._lanes: dict[int, _Lane] = {}
        self._batch: tuple[tuple[int, int], list[Sample]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lanes": {}, "_batch": None}

    def batch_bytes(self, epoch: int, step: int) -> int:
        """About what a batch takes in memory, measured at its first sample; nothing is open afterwards."""
        first = SequentialReader(self.shards, self.line, self.chain, self.rank, self.world, self.faults, 1, self.boxes)
        first._ahead = False
        lane = first._lane(epoch, step)
        lane.reads = True
        size = 0
        for taken in lane.samples:
            first._batch = (epoch, step), [first._read_now(taken)]
            with contextlib.suppress(_NoStandIn):
                made = first._forgiving(lambda: first._made(epoch, step))
                size = sample_bytes(*made) if made else 0
                break
        first._close()
        return size * self.line.slice(self.rank)

    def raw(self, epoch: int, step: int) -> Iterator[Sample] | None:
        if self._batch is None or self._batch[0] != (epoch, step):
            taken = self._take(epoch, step)
            if taken is None:
                return None
            self._batch = (epoch, step), [self._read_now(one) for one in taken]
        return self._standing(epoch, self._batch[1])

    def _standing(self, epoch: int, batch: list[Sample]) -> Iterator[Sample]:
        """The batch, where the next readable one of it stands in for each sample that is not."""
        self._read.clear()
        numbers = torch.tensor([sample["index"] for sample in batch])
        for place, key in enumerate(sample_keys(self.plan.seed, epoch, numbers).tolist()):
            around = batch[place:] + batch[:place]
            sample = next((dict(one) for one in around if one["index"] not in self._unreadable), None)
            if sample is None:
                raise _NoStandIn(f"no image of a batch can be decoded, from {batch[0]['__url__']} on")
            self._read[sample["index"]] = sample["index"]
            sample["rng_key"] = key
            yield sample

    def _take(self, epoch: int, step: int) -> list[_Taken] | None:
        lane, turn, count = self._lane(epoch, step), step // self.line.lanes, self.line.slice(self.rank)
        while lane.turn < turn:
            lane.reads = False
            lane.turn += 1
            if len(list(islice(lane.samples, count))) < count:
                return None
        lane.reads = True
        lane.turn += 1
        taken = list(islice(lane.samples, count))
        return taken if len(taken) == count else None

    def _lane(self, epoch: int, step: int) -> _Lane:
        """The lane that makes the batch, at it or before it."""
        number = step % self.line.lanes
        lane = self._lanes.get(number)
        if lane is None or lane.epoch != epoch or lane.turn > step // self.line.lanes:
            if lane is not None:
                _close(lane)
            lane = self._lanes[number] = _Lane(epoch)
            lane.samples = self._samples(lane, number)
        return lane

    def _samples(self, lane: _Lane, number: int) -> Iterator[_Taken]:
        import webdataset as wds

        own = self.line.of_lane(self.rank, number)
        draw = self.rank * self.line.lanes + number
        shards = wds.SimpleShardList(own, seed=self.line.draw(lane.epoch, draw, "lane"))
        rng = random.Random(self.line.draw(lane.epoch, draw, "buffer"))

        def opened(urls: Iterator[dict[str, str]]) -> Iterator[_Taken]:
            order = [self._numbers[one["url"]] for one in urls]
            for shard, following in zip(order, [*order[1:], None], strict=True):
                with contextlib.ExitStack() as held:
                    waiting = True
                    for one in self._numbers_of(shard):
                        if lane.reads and waiting:
                            waiting = False
                            held.enter_context(self.shards.holding(shard))
                            self._prefetch(following)
                        yield _Taken(one, self.shards.read(one) if lane.reads else None)

        return iter(wds.DataPipeline(shards, opened, wds.shuffle(self.buffer, initial=self.buffer, rng=rng)))

    def _numbers_of(self, shard: int) -> range:
        return self._ranges[shard] if self._ranges else self.shards.numbers(shard)

    def _read_now(self, taken: _Taken) -> Sample:
        return self.shards.read(taken.number) if taken.sample is None else taken.sample

    def _prefetch(self, shard: int | None) -> None:
        """Fetch the next shard while this one is read; what goes wrong is said when it is read itself."""
        if shard is not None and self._ahead:
            threading.Thread(target=_quietly, args=(self.shards.prefetch, shard), daemon=True).start()

    def _close(self) -> None:
        for lane in self._lanes.values():
            _close(lane)
        self._lanes.clear()


class _NoStandIn(UserError):
    """Nothing of a batch can be read."""


def _close(lane: _Lane) -> None:
    close = getattr(lane.samples, "close", None)
    if close is not None:
        close()


def _quietly(work: Callable[[int], None], shard: int) -> None:
    with contextlib.suppress(UserError, OSError):
        work(shard)


def while_all_have(batches: Iterator[Batch], world: int) -> Iterator[Batch]:
    """Batches as long as every process has one, where nobody knows beforehand how many there are.

    Raises:
        UserError: the processes cannot speak to each other.
    """
    group = torch.distributed
    if not (group.is_available() and group.is_initialized() and group.get_world_size() == world):
        raise UserError(
            f"how many samples these shards have is not known, so that {world} processes have to agree after each "
            "batch: start torch.distributed first, or make the set with kdstream shards"
        )
    place = "cuda" if group.get_backend() == "nccl" else "cpu"
    while True:
        batch = next(batches, None)
        has = torch.tensor(float(batch is not None), device=place)
        group.all_reduce(has, group.ReduceOp.MIN)
        if batch is None or not has:
            return
        yield batch


def without_kept(chain: Chain) -> Chain:
    """The chain, which asks for nothing that is kept by the sample: no coding plan, no teacher answers.

    Raises:
        UserError: it does.
    """
    for stage in chain.stages:
        if stage.role == "coded" and stage.setting("plan") != "off":
            raise UserError("coded: a plan needs a set with an index, made by kdstream shards: use coded(plan=off)")
        if stage.role == "teacher" and stage.setting("cache") not in ("off", False, None):
            raise UserError("teacher: cache=auto needs a set with an index, made by kdstream shards: leave it out")
    return chain
