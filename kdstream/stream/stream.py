"""Stream: shards, a plan and a chain of stages; iterating it gives the batches of one epoch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdstream.batch import Batch
from kdstream.data.shards import ShardSet, open_shards
from kdstream.errors import UserError
from kdstream.stream.boxes import WAY, cut_while_decoding
from kdstream.stream.language import parse_chain
from kdstream.stream.loader import Loader, Reader, on_device
from kdstream.stream.plan import Plan
from kdstream.stream.planning import with_plans
from kdstream.stream.stage import Chain


class Stream:
    """Batches of a data set.

    ``stream | stage`` gives a stream with one more stage; a stage is a :class:`~kdstream.stream.stage.Stage`, any
    callable from an iterator of samples to an iterator of samples, or text in the recipe's language.

    Each pass of a ``for`` loop is one epoch, the first of them what is left of it after :meth:`load_state_dict`. A pass
    that is left (``break``) before its last batch does not end its epoch: the next one begins the same epoch anew, with
    the same batches. ``stream.load_state_dict(stream.state_dict())`` goes on after the batch at which it was left.
    Several passes may run at a time, each at its own place; the epoch is over when the first of them comes to its end.

    Args:
        shards: folder/split, such as ``"shards/cifar10/train"``, or an open :class:`ShardSet`.
        batch_size: of the global batch, all processes together.
        seed: of the order and of every random draw.
        train: True: shuffled, every process gets its slice of every global batch. False (evaluation): natural order,
            whole batches are dealt out to the processes, every sample exactly once, nothing padded.
        workers: reader processes of this process; 0 = read in the main process.
        rank, world: of this process; default: torch.distributed's, or 0 of 1.
        device: where batches go and batch stages run.
        given: what stages may ask for by name beside seed, dataset, num_classes, mean and std
            (``teacher``, ``teacher_mean``, ...); see :data:`kdstream.stream.stage.given`.

    The order of samples and their augmentation depend on (data set, seed, epoch, step) only: not on ``world``, not on
    ``workers``, not on restarts.
    """

    def __init__(
        self,
        shards: str | Path | ShardSet,
        batch_size: int,
        seed: int = 0,
        *,
        train: bool = True,
        workers: int = 0,
        rank: int | None = None,
        world: int | None = None,
        device: torch.device | str = "cpu",
        given: Mapping[str, Any] | None = None,
    ):
        self.dataset = shards if isinstance(shards, ShardSet) else open_shards(shards)
        self.plan = Plan(len(self.dataset), batch_size, seed, shuffle=train)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        self.world = world if world is not None else torch.distributed.get_world_size() if distributed else 1
        self.workers, self.device, self.train = workers, torch.device(device), train
        self.given = dict(given or {})
        self.chain = Chain()
        self.epoch = 0
        self.step = 0
        self.wait_seconds = 0.0
        self._first = 0  # step at which the next pass begins
        self._latest: object = None  # the pass that began last: where it stands, the stream stands
        self._loaded = object()  # passes that began before a state was loaded move the stream no more
        self._loader: Loader | None = None
        self._device_chain = Chain()
        self._exact = False  # boxes are cut from whole images, as they were when the loaded state was made
        self._way: int | None = None  # how they were cut then, where that was done while decoding
        smallest = min(self.plan.batch_size, self.plan.size, -(-self.plan.batch_size // 2))
        if train and self.world > smallest:
            raise UserError(
                f"batches of {batch_size} of {len(self.dataset)} samples are too small for {self.world} processes: "
                f"raise batch_size to {2 * self.world} or more"
            )

    def __or__(self, stage: Any) -> Stream:
        new = copy.copy(self)
        new.chain = self.chain | (parse_chain(stage) if isinstance(stage, str) else stage)
        roles = new.chain.roles
        if "teacher" in roles and "normalize" in roles[: roles.index("teacher")]:
            raise UserError("normalize must come after teacher: the teacher standardises images for itself")
        if "mix" in roles and self.train:
            new.plan = replace(self.plan, group=2)
            if not new.plan.smallest_slice(self.world):
                raise UserError(
                    f"batches of {self.plan.batch_size} of {len(self.dataset)} samples hold too few pairs for "
                    f"{self.world} processes: raise batch_size to {4 * self.world} or more"
                )
        new._loader = None
        return new

    @property
    def steps(self) -> int:
        """Batches that this process sees in an epoch."""
        return len(self._route())

    def state_dict(self) -> dict[str, int]:
        """Where the pass that began last stands: its next batch is ``step`` of ``epoch``; how boxes are cut (``boxes``)
        where that is done while decoding."""
        cut = self.train and not self._exact and cut_while_decoding(self.chain, Chain())[0] is not None
        return {"epoch": self.epoch, "step": self.step} | ({"boxes": WAY} if cut else {})

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a state: the next pass begins with that batch. Where it was made when whole images were
        decoded, they are decoded whole to the end, so that no training has some of its pixels so and some otherwise.

        Where boxes cannot be cut here as they were, the next pass says so.
        """
        way = state.get("boxes")
        exact = way is None and bool(state["epoch"] or state["step"])
        if (exact, way) != (self._exact, self._way):
            self._exact, self._way, self._loader = exact, way, None
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        self._first, self._latest, self._loaded = self.step, None, object()

    def open(self, after_chunk: Callable[[], None] = lambda: None) -> None:
        """Do what comes before the first batch, where all processes must be together: find or make coding plans. Find
        out, too, whether there is enough shared memory for the readers.

        Args:
            after_chunk: called by all processes each time that every one of them has made a chunk of a plan; what it
                raises ends the making, and what is made stays for the next time.
        """
        self._open(after_chunk).check(self.epoch, self._route())

    def batches(self, epoch: int, steps: Sequence[int]) -> Iterator[Batch]:
        """These batches of an epoch, in order; where the stream stands does not change."""
        loader = self._open()
        return on_device(self._timed(loader.batches(epoch, steps)), self._device_chain, self.device)

    def _open(self, after_chunk: Callable[[], None] = lambda: None) -> Loader:
        if self._loader is None:
            known = {
                "seed": self.plan.seed,
                "dataset": self.dataset,
                "num_classes": self.dataset.num_classes,
                "mean": self.dataset.mean,
                "std": self.dataset.std,
                **self.given,
            }
            place: dict[str, Any] = {"rank": self.rank, "world": self.world}
            place |= {"workers": self.workers, "device": self.device}
            chain = with_plans(self.chain, known, self.dataset, **place, after_chunk=after_chunk)
            host, device = chain.split()
            boxes = None
            if self.train and not self._exact:
                boxes, host, device = cut_while_decoding(host, device)
            if self._way is not None and (boxes is None or self._way != WAY):
                raise UserError(
                    "the state to continue from was made while images were cut as they are decoded, in a way that this "
                    "stream does not have: use the same stream and version of kdstream, and numba, or start anew"
                )
            self._device_chain = device
            reader = Reader(self.dataset, self.plan, host, self.rank, self.world, boxes)
            self._loader = Loader(reader, self.workers, self.device)
        return self._loader

    def _route(self) -> range:
        """The steps of an epoch that this process sees."""
        return range(self.plan.steps) if self.train else range(self.rank, self.plan.steps, self.world)

    def __iter__(self) -> Generator[Batch, None, None]:
        steps = self._route()
        if self._first == 0 < len(steps) == self.step:  # left, but after its last batch
            self.epoch += 1
        epoch, first, loaded, this = self.epoch, self._first, self._loaded, object()
        self.step, self._first, self._latest = first, 0, this
        for step, batch in enumerate(self.batches(epoch, steps[first:]), first + 1):
            if self._latest is this:
                self.step = step
            yield batch
        if self.epoch == epoch and self._loaded is loaded:
            self.epoch, self.step, self._latest = epoch + 1, 0, None

    def __len__(self) -> int:
        return self.steps

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Counts in ``wait_seconds`` how long the consumer waits for the readers."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch
