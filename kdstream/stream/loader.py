"""From the plan to batches on the device: reader processes, collation, transfer one batch ahead."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from kdstream.draw import sample_keys
from kdstream.errors import UserError
from kdstream.stream.plan import Plan
from kdstream.stream.shards import ShardSet
from kdstream.stream.stage import Chain
from kdstream.types import Batch, Sample


def collate(samples: list[Sample], what: str) -> Batch:
    """Samples of one size to a batch.

    Args:
        samples: each with ``image`` uint8 [3,H,W], ``label``, ``index``, ``rng_key`` and, all or none, ``variants``
            [V,3,H,W] with ``qualities`` [V].
        what: names the batch in messages.

    Raises:
        UserError: no samples, undecoded samples, images of different sizes.
    """
    if not samples:
        raise UserError(
            f"{what}: the stages dropped all of its samples; use larger batches, or drop them when making the shards"
        )
    for sample in samples:
        if "image" not in sample:
            raise UserError(f"{what}: sample {sample.get('__key__')!r} has no pixels; begin the chain with decode")
    sizes = {tuple(sample["image"].shape) for sample in samples}
    if len(sizes) > 1:
        some = " and ".join("x".join(map(str, size[-2:])) for size in sorted(sizes)[:2])
        raise UserError(
            f"{what}: images of different sizes ({some}) make no batch; put augment(inception, SIZE) into the stream "
            "for training and augment(eval, SIZE) for evaluation"
        )

    def column(name: str) -> torch.Tensor:
        return torch.tensor([sample[name] for sample in samples], dtype=torch.int64)

    def stacked(name: str) -> torch.Tensor | None:
        return torch.stack([sample[name] for sample in samples]) if name in samples[0] else None

    image = stacked("image")
    assert image is not None
    return Batch(
        image=image,
        label=column("label"),
        index=column("index"),
        variants=stacked("variants"),
        qualities=stacked("qualities"),
        rng_key=column("rng_key"),
    )


@dataclass(frozen=True)
class Failure:
    """A user's mistake met in a reader process; raised again in the main one, without the reader's traceback."""

    message: str


class Reader(Dataset[Any]):
    """Makes one rank's slice of global batch (epoch, step); needs nothing but the two numbers."""

    def __init__(self, shards: ShardSet, plan: Plan, chain: Chain, rank: int, world: int):
        self.shards, self.plan, self.chain, self.rank, self.world = shards, plan, chain, rank, world

    def samples(self, epoch: int, step: int) -> Iterator[Sample]:
        """The raw samples of a batch, in the plan's order."""
        # Evaluation deals out whole batches (Stream.steps), training slices of every batch.
        part = (self.rank, self.world) if self.plan.shuffle else (0, 1)
        index = self.plan.batch(epoch, step, *part)
        for position, key in zip(index.tolist(), sample_keys(self.plan.seed, epoch, index).tolist(), strict=True):
            sample = self.shards.read(position)
            sample["rng_key"] = key
            yield sample

    def __getitem__(self, at: tuple[int, int]) -> Batch | Failure:
        epoch, step = at
        try:
            return collate(list(self.chain(self.samples(epoch, step))), f"batch {step} of epoch {epoch}")
        except UserError as error:
            return Failure(str(error))


PATIENCE = 30
"""Seconds that a reader outlives a SIGTERM, unless its loader ends before."""


class _Route:
    """The (epoch, step) pairs that the readers shall make; replaced before each pass over the loader."""

    def __init__(self) -> None:
        self.stops: Sequence[int] = ()
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, step) for step in self.stops)

    def __len__(self) -> int:
        return len(self.stops)


def _quiet_worker(_: int) -> None:
    # Ctrl-C, and a scheduler's SIGTERM, reach the whole process group. The main process decides what follows; a reader
    # that died in the middle of a batch would take it along before it has saved. So it gets a minute's fraction.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(PATIENCE))


class Loader:
    """Reader processes over a :class:`Reader`.

    Args:
        reader: makes batches.
        workers: reader processes; 0 = read in this process.
        device: where the batches will go; for CUDA they are handed over in page-locked memory.
    """

    def __init__(self, reader: Reader, workers: int, device: torch.device):
        self.route = _Route()
        self.workers = workers
        self._ends_at_exit = False
        self.loader: DataLoader[Any] = DataLoader(
            reader,
            batch_size=None,
            sampler=self.route,  # type: ignore[arg-type]
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_quiet_worker,
            collate_fn=_as_it_is,
            # Its own generator: otherwise every pass would take a number from the one that dropout draws from.
            generator=torch.Generator(),
        )

    def batches(self, epoch: int, steps: Sequence[int]) -> Iterator[Batch]:
        """The batches of these steps, in order."""
        self.route.epoch, self.route.stops = epoch, steps
        passing = iter(self.loader)
        if self.workers and not self._ends_at_exit:
            # Registered after torch's own hook, hence run before it, which would end the readers by SIGTERM.
            atexit.register(_end_readers, weakref.ref(passing))
            self._ends_at_exit = True
        for made in passing:
            if isinstance(made, Failure):
                raise UserError(made.message)
            yield made


def _end_readers(passing: weakref.ref[Any]) -> None:
    iterator = passing()
    if iterator is not None:
        iterator._shutdown_workers()


def _as_it_is(value: Any) -> Any:
    return value


def on_device(batches: Iterator[Batch], chain: Chain, device: torch.device) -> Iterator[Batch]:
    """Batches on the device, after the chain's stages.

    On a GPU copies and stages (the teacher, above all) work one batch ahead, on a stream of their own, while the user
    works on the batch in hand.
    """
    made = chain(batch.to(device, non_blocking=True) for batch in batches)
    if device.type != "cuda":
        yield from made
        return
    side = torch.cuda.Stream(device)

    def make() -> tuple[Batch | None, torch.cuda.Event]:
        with torch.cuda.stream(side):
            return next(made, None), side.record_event()

    batch, ready = make()
    while batch is not None:
        coming = make()
        here = torch.cuda.current_stream(device)
        here.wait_event(ready)
        for tensor in _tensors(batch):
            tensor.record_stream(here)  # its memory belongs to the side stream, which must not reuse it too soon
        yield batch
        batch, ready = coming


def _tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    batch.map_tensors(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found
