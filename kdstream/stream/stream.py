"""Stream: shards, a plan and a chain of stages; iterating it gives the batches of one epoch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdstream.batch import Batch
from kdstream.data.shards import ShardSet, open_shards
from kdstream.errors import UserError
from kdstream.hashing import Unnamed, network_name
from kdstream.stream.coded import is_coded, selector_name, unaugmented, view_name
from kdstream.stream.coding_plan import CHUNK, PlanKey, load_plan, make_plan
from kdstream.stream.language import parse_chain
from kdstream.stream.loader import Loader, Reader, on_device
from kdstream.stream.plan import Plan
from kdstream.stream.stage import Chain, Stage
from kdstream.stream.teacher import teacher


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
        smallest = min(self.plan.batch_size, self.plan.size, -(-self.plan.batch_size // 2))
        if train and self.world > smallest:
            raise UserError(
                f"batches of {batch_size} of {len(self.dataset)} samples are too small for {self.world} processes: "
                f"raise batch_size to {2 * self.world} or more"
            )

    def __or__(self, stage: Any) -> Stream:
        new = copy.copy(self)
        new.chain = self.chain | (parse_chain(stage) if isinstance(stage, str) else stage)
        if new.chain.has("teacher") and new.chain.has("normalize"):
            names = [step.name for step in new.chain.stages]
            if names.index("normalize") < names.index("teacher"):
                raise UserError("normalize must come after teacher: the teacher standardises images for itself")
        new._loader = None
        return new

    @property
    def steps(self) -> int:
        """Batches that this process sees in an epoch."""
        return len(self._route())

    def state_dict(self) -> dict[str, int]:
        """Where the pass that began last stands: its next batch is ``step`` of ``epoch``."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a state: the next pass begins with that batch."""
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

    def _with_plans(self, chain: Chain, known: Mapping[str, Any], after_chunk: Callable[[], None]) -> Chain:
        """The chain with the coding plans that its ``coded`` stages ask for."""
        stages = list(chain.stages)
        for position, stage in enumerate(stages):
            asked = stage.settings["plan"] if is_coded(stage) else "off"
            if isinstance(asked, torch.Tensor) or asked == "off":
                continue
            view = unaugmented(stages, position)
            key = self._plan_key(stage, position, known)
            if asked != "auto":
                plan = load_plan(Path(asked), key, len(self.dataset))
            else:
                chooser, together = self._chooser(view), self._is_joined()
                place: dict[str, Any] = {}
                if together:
                    place = {"rank": self.rank, "world": self.world, "share": self._share}
                choose = partial(chooser.batches, 0)
                plan = make_plan(self.dataset, key, chooser.plan, choose, **place, after_chunk=after_chunk)
            stages[position] = replace(stage, settings={**stage.settings, "plan": plan})
        return Chain(tuple(stages))

    def _plan_key(self, stage: Stage, position: int, known: Mapping[str, Any]) -> PlanKey:
        """What the plan for the ``coded`` stage at this position of the chain depends on."""
        if "teacher" not in known:
            raise UserError("coded: a plan needs the teacher, and this stream does not know it: give it one")
        network = known["teacher"]
        teacher_name = known.get("teacher_hash") or network_name(getattr(network, "module", network))
        # The stages as they are named: what the stream fills in counts by its own name.
        named = self.chain.bind({**known, "teacher": teacher_name, "dataset": self.dataset.fingerprint})
        try:
            selector = selector_name(stage.settings["selector"])
            view = view_name(unaugmented(named.stages, position))
        except Unnamed as error:
            raise UserError(
                f"coded: plan={stage.settings['plan']} is not possible, since a plan is kept by the name of all that "
                f"it depends on: {error}; use plan=off, or give that object a method named_by() that returns plain "
                "values"
            ) from None
        return PlanKey(
            data=self.dataset.fingerprint,
            teacher=teacher_name,
            selector=selector,
            delta=stage.settings["delta"],
            subsampling=stage.settings["subsampling"],
            view=f"{view}, mean {list(known['teacher_mean'])}, std {list(known['teacher_std'])}, "
            f"precision {known.get('precision', 'no')}",
        )

    def _chooser(self, view: Chain) -> Stream:
        """Chunk by chunk, in natural order, the whole data set with the selector's choice for every sample."""
        place: dict[str, Any] = {"rank": 0, "world": 1, "workers": self.workers, "device": self.device}
        # Seed 0: what the user's own stages draw at random does not make a plan another one for every seed.
        return Stream(self.dataset, CHUNK, 0, train=False, given=self.given, **place) | view | teacher

    def _is_joined(self) -> bool:
        return self.world > 1 and torch.distributed.is_available() and torch.distributed.is_initialized()

    def _share(self, value: Any) -> list[Any]:
        values = [None] * self.world
        try:
            torch.distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise UserError("another process has ended, whose message says why; the same command continues") from error
        return values

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
            chain = self._with_plans(self.chain.bind(known), known, after_chunk)
            host, self._device_chain = chain.split()
            self._loader = Loader(
                Reader(self.dataset, self.plan, host, self.rank, self.world), self.workers, self.device
            )
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
