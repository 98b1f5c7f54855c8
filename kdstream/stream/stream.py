"""Stream: shards, a plan and a chain of stages; iterating it gives the batches of one epoch."""

from __future__ import annotations

import copy
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from kdstream.batch import Batch
from kdstream.data.faults import Faults, allowed_share
from kdstream.data.listing import Listing, open_to_go_through
from kdstream.data.shards import ShardSet, open_shards
from kdstream.errors import UserError
from kdstream.stream.boxes import WAY, BoxReader, cut_while_decoding, refuse_without_pixels
from kdstream.stream.cache import CacheLoader, Decoded, Where, decoded, loader_of, not_kept
from kdstream.stream.kept_rows import alone
from kdstream.stream.language import parse_chain
from kdstream.stream.loader import Loader, Reader, on_device
from kdstream.stream.plan import Plan
from kdstream.stream.planning import shares, with_plans
from kdstream.stream.sequential import (
    SequentialPlan,
    SequentialReader,
    sequential_plan,
    while_all_have,
    without_kept,
)
from kdstream.stream.stage import Chain
from kdstream.stream.teacher_answers import with_answers

if TYPE_CHECKING:
    from kdstream.convert.split import Source


class Stream:
    """Batches of a data set.

    ``stream | stage`` gives a stream with one more stage; a stage is a :class:`~kdstream.stream.stage.Stage`, any
    callable from an iterator of samples to an iterator of samples, or text in the recipe's language.

    Each pass of a ``for`` loop is one epoch, the first of them what is left of it after :meth:`load_state_dict`. A pass
    that is left (``break``) before its last batch does not end its epoch: the next one begins the same epoch anew, with
    the same batches. ``stream.load_state_dict(stream.state_dict())`` goes on after the batch at which it was left.
    Several passes may run at a time, each at its own place; the epoch is over when the first of them comes to its end.

    Args:
        shards: folder/split, such as ``"shards/cifar10/train"``, its address (``"s3://bucket/birds/train"``), or an
            open :class:`ShardSet`; with ``order="sequential"`` also shards by name,
            ``"https://host/birds-{000..099}.tar"``.
        batch_size: of the global batch, all processes together.
        seed: of the order and of every random draw.
        train: True: shuffled, every process gets its slice of every global batch. False (evaluation): natural order,
            whole batches are dealt out to the processes, every sample exactly once, nothing padded.
        workers: reader processes of this process; 0 = read in the main process.
        rank, world: of this process; default: torch.distributed's, or 0 of 1.
        device: where batches go and batch stages run.
        cache: keep the decoded split in memory (:mod:`kdstream.stream.cache`), of the "host" or of the "device"; the
            batches are the same. "auto": on a GPU or else on the host, where all images have one size, no stage before
            the batch is your own or draws at random, and it takes at most a quarter of the memory that is free. "off":
            read the shards in every epoch.
        given: what stages may ask for by name beside seed, dataset, num_classes, mean and std
            (``teacher``, ``teacher_mean``, ...); see :data:`kdstream.stream.stage.given`.
        order: "shuffled": a permutation of all samples. "sequential": shard by shard, for sets that are larger than the
            disk; see :mod:`kdstream.stream.sequential` for what is not promised then.
        on_error: what becomes, in training, of images that cannot be decoded: "stop", "skip", or "skip(0.001)": up to
            this share of the samples, others stand in for them: the first readable one of an order that depends on the
            sample's number alone (order="sequential": the next one of its batch). Evaluation always stops.
        skipped_file: where skipped samples are listed, a JSON object a line; default: a temporary file.

    Attributes:
        note: once it is opened, whether and where the split is kept, or why not.

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
        cache: Where = "auto",
        given: Mapping[str, Any] | None = None,
        order: Literal["shuffled", "sequential"] = "shuffled",
        on_error: str = "stop",
        skipped_file: str | Path | None = None,
    ):
        if order not in ("shuffled", "sequential"):
            raise UserError(f"order is {order!r}: it is shuffled or sequential")
        if order == "sequential" and not train:
            raise UserError("order=sequential is of training; evaluation goes through the shards in their order anyway")
        self.sequential = order == "sequential"
        self.dataset: Any = shards
        if isinstance(shards, str | Path):
            self.dataset = open_to_go_through(shards) if self.sequential else open_shards(shards)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        self.world = world if world is not None else torch.distributed.get_world_size() if distributed else 1
        if self.sequential:
            self.plan: Plan = self._sequential(batch_size, seed)
        else:
            self.plan = Plan(len(self.dataset), batch_size, seed, shuffle=train)
        share = allowed_share(on_error) if train else None
        if share is None:
            self.faults = None
        else:
            name = f"kdstream-skipped-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
            total = None if isinstance(self.dataset, Listing) else len(self.dataset)
            self.faults = Faults(Path(skipped_file or Path(tempfile.gettempdir()) / name), share, total)
        self.workers, self.device, self.train = workers, torch.device(device), train
        if cache not in get_args(Where):
            raise UserError(f"cache is {cache!r}; it is one of {', '.join(get_args(Where))}")
        self.cache: Where = cache
        self.note = ""
        self.given = dict(given or {})
        self.chain = Chain()
        self.epoch = 0
        self.step = 0
        self.wait_seconds = 0.0
        self._first = 0  # step at which the next pass begins
        self._latest: object = None  # the pass that began last: where it stands, the stream stands
        self._loaded = object()  # passes that began before a state was loaded move the stream no more
        self._loader: Loader | CacheLoader | None = None
        self._device_chain = Chain()
        self._exact = False  # boxes are cut from whole images, as they were when the loaded state was made
        self._way: int | None = None  # how they were cut then, where that was done while decoding
        smallest = min(self.plan.batch_size, self.plan.size, -(-self.plan.batch_size // 2))
        if train and self.world > smallest:
            raise UserError(
                f"batches of {batch_size} of {self.plan.size} samples are too small for {self.world} processes: "
                f"raise batch_size to {2 * self.world} or more"
            )

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        batch_size: int,
        seed: int = 0,
        *,
        classes: Sequence[str] | None = None,
        fingerprint: str | None = None,
        **settings: Any,
    ) -> Stream:
        """Batches of any map-style data set of (image, label).

        It is converted once, to shards in the user's cache folder, and found there again by its content; see
        :func:`~kdstream.convert.from_dataset.from_datasets` for what images may be.

        Args:
            dataset: with a length and items (image, label); without random transforms, which ``augment`` does.
            batch_size, seed: see :class:`Stream`.
            classes: names of the classes; default: the data set's ``classes``, else numbers.
            fingerprint: a name for the content, changed by you when that changes: then the data set is not read again
                to find its shards.
            settings: of :class:`Stream`.

        Raises:
            UserError: items of another kind.
        """
        from kdstream.convert.from_dataset import from_datasets
        from kdstream.convert.kept_shards import kept_shards

        name = f"dataset:{type(dataset).__name__}"

        def opened() -> Source:
            return from_datasets(name, {"train": dataset}, classes)

        source = opened if fingerprint else opened()
        return cls(kept_shards(source, fingerprint=fingerprint) / "train", batch_size, seed, **settings)

    def __or__(self, stage: Any) -> Stream:
        new = copy.copy(self)
        new.chain = self.chain | (parse_chain(stage) if isinstance(stage, str) else stage)
        roles = new.chain.roles
        if "teacher" in roles and "normalize" in roles[: roles.index("teacher")]:
            raise UserError("normalize must come after teacher: the teacher standardises images for itself")
        if "mix" in roles and self.train:
            size, seed = self.plan.batch_size, self.plan.seed
            new.plan = self._sequential(size, seed, 2) if self.sequential else replace(self.plan, group=2)
            if not new.plan.smallest_slice(self.world):
                raise UserError(
                    f"batches of {self.plan.batch_size} of {self.plan.size} samples hold too few pairs for "
                    f"{self.world} processes: raise batch_size to {4 * self.world} or more"
                )
        new._loader = None
        return new

    @property
    def steps(self) -> int:
        """Batches that this process sees in an epoch.

        Raises:
            UserError: it is not known, see :mod:`kdstream.stream.sequential`.
        """
        return self.plan.steps if self.train else len(self._route())

    @property
    def notes(self) -> list[str]:
        """What a user should know of the order, a line each."""
        return self.plan.notes() if isinstance(self.plan, SequentialPlan) else []

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """The samples that others stood in for until now: index, key, shard and reason of each."""
        return [] if self.faults is None else self.faults.listed()

    def state_dict(self) -> dict[str, int]:
        """Where the pass that began last stands: its next batch is ``step`` of ``epoch``; how boxes are cut (``boxes``)
        where that is done while decoding; of how many processes (``world``) where shards are dealt out to them."""
        state = {"epoch": self.epoch, "step": self.step}
        if self.train and not self._exact and cut_while_decoding(self.chain, Chain())[0] is not None:
            state["boxes"] = WAY
        return state | ({"world": self.world} if self.sequential else {})

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a state: the next pass begins with that batch. Where it was made when whole images were
        decoded, they are decoded whole to the end, so that no training has some of its pixels so and some otherwise.

        Where boxes cannot be cut here as they were, the next pass says so.

        Raises:
            UserError: a state of ``order="sequential"`` on another number of processes.
        """
        if self.sequential and state.get("world", self.world) != self.world:
            raise UserError(
                f"this state is of {state['world']} processes, here are {self.world}: order=sequential deals shards to "
                "processes, and goes on with as many as it began with"
            )
        way = state.get("boxes")
        exact = way is None and bool(state["epoch"] or state["step"])
        if (exact, way) != (self._exact, self._way):
            self._exact, self._way, self._loader = exact, way, None
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        self._first, self._latest, self._loaded = self.step, None, object()

    def open(self, after_chunk: Callable[[], None] = lambda: None) -> None:
        """Do what comes before the first batch, where all processes must be together: decode the split that is to be
        kept, find or make coding plans and teacher answers. Find out, too, whether there is enough shared memory for
        the readers.

        Args:
            after_chunk: called by all processes each time that every one of them has decoded a part of the split, or
                made a chunk of what is kept; what it raises ends the work, and what is made stays for the next time.
        """
        self._open(after_chunk).check(self.epoch, self._route())

    def batches(self, epoch: int, steps: Sequence[int]) -> Iterator[Batch]:
        """These batches of an epoch, in order; where the stream stands does not change."""
        loader = self._open()
        made = loader.batches(epoch, steps)
        if isinstance(self.dataset, Listing) and self.world > 1:
            made = while_all_have(made, self.world)
        return on_device(self._timed(made), self._device_chain, self.device)

    def _open(self, after_chunk: Callable[[], None] = lambda: None) -> Loader | CacheLoader:
        if self._loader is None:
            known = {"seed": self.plan.seed, "dataset": self.dataset}
            names = ("num_classes", "mean", "std")
            known |= {name: getattr(self.dataset, name) for name in names if hasattr(self.dataset, name)}
            known |= self.given
            refuse_without_pixels(self.chain, self.faults is not None)
            kept = self._kept(known, after_chunk)
            place: dict[str, Any] = {"rank": self.rank, "world": self.world, "faults": self.faults, "kept": kept}
            place |= {"workers": self.workers, "device": self.device}
            if isinstance(self.dataset, Listing):
                chain = without_kept(self.chain).bind(known)
            else:
                place["after_chunk"] = after_chunk
                chain = with_plans(self.chain, known, self.dataset, **place)
                chain = with_answers(self.chain, chain, known, self.dataset, **place)
            host, self._device_chain = chain.split()
            if kept is not None and kept.serves(host):
                boxes = None
            else:
                boxes, host, self._device_chain = self._boxes(host, self._device_chain)
            self._loader = loader_of(self._reader(host, boxes), kept, self.workers, self.device)
        return self._loader

    def _kept(self, known: Mapping[str, Any], after_chunk: Callable[[], None]) -> Decoded | None:
        """The split in memory, if it is to be there; ``note`` says why, or why not."""
        for told, reason in (
            (self.sequential, "order=sequential goes through the shards"),
            (self.faults is not None, "on_error lets others stand in for samples"),
        ):
            if told:
                self.note = not_kept(self.cache, reason)
                return None
        share = shares(self.world)
        kept, self.note = decoded(
            self.cache,
            self.dataset,
            self.chain.bind(known).split()[0],
            workers=self.workers,
            device=self.device,
            rank=self.rank if share is not alone else 0,
            share=share,
            after_chunk=after_chunk,
        )
        return kept

    def _sequential(self, batch_size: int, seed: int, group: int = 1) -> Plan:
        return sequential_plan(self.dataset, batch_size, seed, self.world, group)

    def _boxes(self, host: Chain, device: Chain) -> tuple[BoxReader | None, Chain, Chain]:
        """What cuts boxes while images are decoded, if anything does, and what is left of the chain.

        Raises:
            UserError: the state to continue from was made so, and that cannot be done here.
        """
        boxes = None
        if self.train and not self._exact:
            boxes, host, device = cut_while_decoding(host, device)
        if self._way is not None and (boxes is None or self._way != WAY):
            raise UserError(
                "the state to continue from was made while images were cut as they are decoded, in a way that this "
                "stream does not have: use the same stream and version of kdstream, and numba, or start anew"
            )
        return boxes, host, device

    def _reader(self, host: Chain, boxes: BoxReader | None) -> Reader:
        if not self.sequential:
            return Reader(self.dataset, self.plan, host, self.rank, self.world, self.faults, boxes=boxes)
        assert isinstance(self.plan, SequentialPlan)
        return SequentialReader(self.dataset, self.plan, host, self.rank, self.world, self.faults, boxes=boxes)

    def _route(self) -> range:
        """The steps of an epoch that this process sees."""
        if isinstance(self.dataset, Listing):
            return range(sys.maxsize)
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
