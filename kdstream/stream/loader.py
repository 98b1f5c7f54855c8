"""From the plan to batches on the device: reader processes, collation, transfer one batch ahead."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import os
import pickle
import re
import signal
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from kdstream.batch import Batch, Files, Sample
from kdstream.data.faults import Faults, Undecodable
from kdstream.data.shards import ShardSet
from kdstream.errors import UserError
from kdstream.rng import sample_keys, words
from kdstream.stream.boxes import BoxReader
from kdstream.stream.decode import image_of
from kdstream.stream.plan import Plan
from kdstream.stream.stage import Chain

T = TypeVar("T")


def collate(samples: list[Sample], what: str, image: torch.Tensor | None = None) -> Batch:
    """Samples of one size to a batch.

    Args:
        samples: each with ``image`` uint8 [3,H,W], ``label``, ``index``, ``rng_key`` and, all or none, ``variants``
            [V,3,H,W] with ``qualities`` [V]. Those with a ``box`` (top, left, height, width) may differ in size, and
            may have ``__file__`` (uint8) and ``__size__`` (height, width) in place of ``image``: they make a batch with
            ``pixels``, ``places`` and ``files``.
        what: names the batch in messages.
        image: uint8 [N,3,H,W], the samples' images where they are together already, and the samples have none.

    Raises:
        UserError: no samples, undecoded samples, images of different sizes.
    """
    if not samples:
        raise UserError(
            f"{what}: the stages dropped all of its samples; use larger batches, or drop them when making the shards"
        )
    for sample in samples if image is None else ():
        if "image" not in sample and "__file__" not in sample:
            raise UserError(f"{what}: sample {sample.get('__key__')!r} has no pixels; begin the chain with decode")
    whole: dict[str, Any] = _whole(samples) if "box" in samples[0] else {}
    image = whole.pop("image", image)
    sizes = {tuple(sample["image"].shape) for sample in samples} if image is None else set()
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

    image = stacked("image") if image is None else image
    assert image is not None
    return Batch(
        image=image,
        label=column("label"),
        index=column("index"),
        variants=stacked("variants"),
        qualities=stacked("qualities"),
        rng_key=column("rng_key"),
        **whole,
    )


def _whole(samples: list[Sample]) -> dict[str, Any]:
    """Images of different sizes, decoded or as files, and the boxes to be cut: what a batch has of them."""
    decoded = [sample["image"].flatten() for sample in samples if "image" in sample]
    files = [(i, sample["__file__"], image_of(sample)[1]) for i, sample in enumerate(samples) if "image" not in sample]
    starts = itertools.accumulate((image.numel() for image in decoded), initial=0)
    places = [
        (next(starts), *sample["image"].shape[1:], *sample["box"])
        if "image" in sample
        else (-1, *sample["__size__"], *sample["box"])
        for sample in samples
    ]
    begins = itertools.accumulate((data.numel() for _, data, _ in files), initial=0)
    where = [(i, begin, data.numel()) for (i, data, _), begin in zip(files, begins, strict=False)]
    return {
        "image": torch.empty(len(samples), 3, 0, 0, dtype=torch.uint8),
        "pixels": _joined(decoded),
        "places": places,
        "files": Files(_joined([data for _, data, _ in files]), where, [what for *_, what in files]) if files else None,
    }


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Bytes one after another, in a reader process where the main process sees them as well."""
    size = sum(part.numel() for part in parts)
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    joined = _room((size,))
    return torch.cat(parts, out=joined)


@dataclass(frozen=True)
class Failure:
    """A user's mistake met in a reader process; raised again in the main one, without the reader's traceback."""

    message: str


@dataclass(frozen=True)
class End:
    """There are no more batches, where it is not known beforehand how many there are."""


STAND_INS = 64
"""Samples that may stand in for one whose image cannot be decoded; it is the first of them whose image can."""


class Reader(Dataset[Any]):
    """Makes one rank's slice of global batch (epoch, step); needs nothing but the two numbers.

    Args:
        shards: where samples are read.
        plan: which are a batch.
        chain: what is done to them on the host.
        rank, world: of the process.
        faults: where samples are listed whose image cannot be decoded; others stand in for them then. None = stop.
        numbered: who stands in bears the number of the sample that he stands in for.
        boxes: what comes before the chain and does the work of its first stages in one step; or None.
    """

    def __init__(
        self,
        shards: ShardSet,
        plan: Plan,
        chain: Chain,
        rank: int,
        world: int,
        faults: Faults | None = None,
        numbered: bool = False,
        boxes: BoxReader | None = None,
    ):
        self.shards, self.plan, self.chain, self.rank, self.world = shards, plan, chain, rank, world
        self.faults, self.numbered, self.boxes = faults, numbered, boxes
        self._unreadable: set[int] = set()
        self._read: dict[int, int] = {}  # of the batch in hand: number that the sample bears -> number in the shards

    def index(self, epoch: int, step: int) -> torch.Tensor:
        """Which samples the batch is made of, int64 [n]."""
        # Evaluation deals out whole batches (Stream.steps), training slices of every batch.
        return self.plan.batch(epoch, step, *((self.rank, self.world) if self.plan.shuffle else (0, 1)))

    def samples(self, epoch: int, index: torch.Tensor) -> Iterator[Sample]:
        """The raw samples of these numbers, in order."""
        for position, key in zip(index.tolist(), sample_keys(self.plan.seed, epoch, index).tolist(), strict=True):
            number = self._stand_in(position)
            sample = self.shards.read(number)
            if self.numbered:
                sample["index"] = position
            self._read[sample["index"]] = number
            sample["rng_key"] = key
            yield sample

    def _stand_in(self, position: int) -> int:
        """The sample itself, or the first of an order of its own that can be read as far as is known: what comes of it
        depends on the data set and the number alone.

        Raises:
            UserError: there is none.
        """
        if position not in self._unreadable:
            return position
        order = words(torch.tensor([position]), STAND_INS, "stand-in")[0] & ((1 << 62) - 1)
        for number in (order % len(self.shards)).tolist():
            if number not in self._unreadable:
                return number
        raise UserError(f"sample {position} cannot be decoded, nor can {STAND_INS} others that could stand in for it")

    def _forgiving(self, make: Callable[[], T]) -> T:
        """What ``make`` gives, begun anew as often as it meets an image that cannot be decoded and may be skipped.

        Raises:
            UserError: too many of them.
        """
        while True:
            try:
                return make()
            except Undecodable as fault:
                number = None if fault.index is None else self._read.get(fault.index)
                if self.faults is None or number is None or number in self._unreadable:
                    raise
                fault.index = number
                self.faults.add(fault)
                self._unreadable.add(number)

    def batch_bytes(self, epoch: int, step: int) -> int:
        """About what a batch takes in memory, measured at its first sample."""
        index = self.index(epoch, step)
        samples, image = self._forgiving(lambda: self._through(self.samples(epoch, index[:1])))
        return len(index) * sample_bytes(samples, image)

    def raw(self, epoch: int, step: int) -> Iterator[Sample] | None:
        """The raw samples of a batch; None where there is no such batch."""
        self._read.clear()
        return self.samples(epoch, self.index(epoch, step))

    def _made(self, epoch: int, step: int) -> tuple[list[Sample], torch.Tensor | None] | None:
        raw = self.raw(epoch, step)
        return None if raw is None else self._through(raw)

    def _through(self, raw: Iterator[Sample]) -> tuple[list[Sample], torch.Tensor | None]:
        """Samples after the chain; their images apart where they are together already."""
        if self.boxes is None:
            return list(self.chain(raw)), None
        samples = list(raw)
        views = _room((len(samples), 3, self.boxes.size, self.boxes.size))
        self.boxes.views(samples, views)
        if not self.chain.stages:
            return samples, views
        for sample, view in zip(samples, views, strict=True):
            sample["image"] = view
        return list(self.chain(iter(samples))), None

    def __getitem__(self, at: tuple[int, int]) -> Batch | Failure | End:
        epoch, step = at
        try:
            made = self._forgiving(lambda: self._made(epoch, step))
            if made is None:
                return End()
            batch = collate(made[0], f"batch {step} of epoch {epoch}", made[1])
            return batch if get_worker_info() is None else _shared(batch)
        except UserError as error:
            return Failure(str(error))
        except Exception as error:
            if get_worker_info() is None or _can_be_sent(type(error)):
                raise
            # What cannot be sent would be dropped, and the main process would wait for it for ever.
            raise RuntimeError("".join(traceback.format_exception(error))) from None


def sample_bytes(made: Sequence[Sample], image: torch.Tensor | None) -> int:
    """What the first of these samples takes in a batch; ``image``: theirs, where they are together already."""
    tensors = (value for sample in made[:1] for value in sample.values() if isinstance(value, torch.Tensor))
    return sum(tensor.nbytes for tensor in tensors) + (0 if image is None else image[:1].nbytes)


def _can_be_sent(kind: type) -> bool:
    try:
        pickle.dumps(kind)
    except Exception:
        return False
    return True


def _shared(batch: Batch) -> Batch:
    """The batch in memory that the main process sees as well.

    Done here: where there is no more of it, torch's own thread, which would do it later, drops the batch without a word
    to the main process, which then waits for ever.
    """
    with _sharing(_bytes(batch)):
        return batch.map_tensors(torch.Tensor.share_memory_)


def _room(shape: tuple[int, ...]) -> torch.Tensor:
    """A uint8 tensor to be filled; in a reader process in memory that the main process will see as well.

    Raises:
        UserError: too little shared memory.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    size = math.prod(shape)
    with _sharing(size):
        storage = torch.UntypedStorage._new_shared(size)
        return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


@contextlib.contextmanager
def _sharing(size: int) -> Iterator[None]:
    """Tells in one line why so many bytes cannot be shared."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if "Too many open files" in str(error):
            raise _too_many_files() from None
        raise UserError(_too_little(f"a batch of {_size(size)} does not fit ({_reason(error)})")) from None


def _too_many_files() -> UserError:
    return UserError(
        "too many open files: every batch of a reader process takes some; allow more (`ulimit -n 4096`), lower "
        "workers, or set workers=0"
    )


def _bytes(batch: Batch) -> int:
    return sum(tensor.nbytes for tensor in _tensors(batch))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[-120:]


def _size(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _shared_memory() -> tuple[int, int] | None:
    """Bytes (free, in all) of the shared memory; None where it is not told."""
    try:
        state = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return None
    return state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize


def _too_little(what: str) -> str:
    memory = _shared_memory()
    has = "" if memory is None else f", which has {_size(memory[0])} free of {_size(memory[1])}"
    return (
        f"reader processes hand their batches over in shared memory, /dev/shm{has}; {what}: give a container more "
        "(docker run --shm-size=8g), lower workers or the batch size, or set workers=0, which needs none"
    )


class ReaderLost(UserError):
    """A reader process has ended that was to make more batches."""


@contextlib.contextmanager
def lost_readers_told() -> Iterator[None]:
    """Turns the end of a reader process into one line; torch tells of it in the middle of anything.

    Raises:
        ReaderLost: a reader was ended, by the system above all.
    """
    try:
        yield
    except RuntimeError as error:
        if "Too many open files" in str(error):
            raise _too_many_files() from error
        # The signal stands in the first message, where torch raises a second one about the same reader.
        text = " ".join(f"{error} {error.__cause__ or ''}".split())
        if not text.startswith(("DataLoader worker", "Pin memory thread")):
            raise
        how = re.search(r"killed by signal: ([\w ]+)", text)
        raise _lost(how.group(1) if how else None) from error


def _lost(how: str | None) -> ReaderLost:
    if how is not None and how.startswith("Bus error"):
        return ReaderLost(_too_little("it was not enough"))
    return ReaderLost(
        f"a reader process was ended{f' ({how})' if how else ''}, as the system does where memory runs out: lower "
        "workers or the batch size, or set workers=0, which reads in the main process"
    )


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
    """Reader processes over a :class:`Reader`, which stay for the next pass.

    Args:
        reader: makes batches.
        workers: reader processes; 0 = read in this process.
        device: where the batches will go; for CUDA they are handed over in page-locked memory.
    """

    def __init__(self, reader: Reader, workers: int, device: torch.device):
        self.reader, self.workers, self.device = reader, workers, device
        self._idle: list[DataLoader[Any]] = []

    def check(self, epoch: int, steps: Sequence[int]) -> int | None:
        """How many batches of an epoch each reader can make ahead; None where there are no readers or batches.

        Raises:
            UserError: too little shared memory for their batches.
        """
        if not self.workers or not len(steps):
            return None
        return _batches_ahead(self.reader.batch_bytes(epoch, steps[0]), self.workers)

    def _readers(self, epoch: int, steps: Sequence[int]) -> DataLoader[Any]:
        """New readers.

        Raises:
            UserError: too little shared memory for their batches.
        """
        ahead = self.check(epoch, steps)
        return DataLoader(
            self.reader,
            batch_size=None,
            sampler=_Route(),
            num_workers=self.workers,
            prefetch_factor=ahead,
            persistent_workers=self.workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_quiet_worker,
            collate_fn=_as_it_is,
            # Its own generator: otherwise every pass would take a number from the one that dropout draws from.
            generator=torch.Generator(),
        )

    def batches(self, epoch: int, steps: Sequence[int]) -> Iterator[Batch]:
        """The batches of these steps, in order. Passes at the same time have readers of their own.

        Raises:
            UserError: of a stage; too little shared memory; a reader that was ended.
        """
        if not len(steps):
            return
        loader = self._idle.pop() if self._idle else self._readers(epoch, steps)
        route = loader.sampler
        assert isinstance(route, _Route)
        route.epoch, route.stops = epoch, steps
        passing = None
        try:
            passing = self._begin(loader)
            while True:
                with lost_readers_told():
                    made = self._next(passing)
                if made is None or isinstance(made, End):
                    break
                if isinstance(made, Failure):
                    raise UserError(made.message)
                yield made
        except GeneratorExit:
            self._put_back(loader, passing)
            raise
        except BaseException:
            _end_readers(passing)  # they may be in any state
            raise
        self._put_back(loader, passing)

    def _begin(self, loader: DataLoader[Any]) -> Iterator[Any]:
        begun = getattr(loader, "_iterator", None)
        try:
            with lost_readers_told():
                passing = iter(loader)
        except OSError as error:  # semaphores lie in shared memory, too
            raise UserError(_too_little(f"{self.workers} readers cannot start ({_reason(error)})")) from None
        if self.workers and passing is not begun:
            # Registered after torch's own hook, hence run before it, which would end the readers by SIGTERM.
            atexit.register(_end_referred, weakref.ref(passing))
        return passing

    def _next(self, passing: Any) -> Any:
        try:
            with lost_readers_told():
                return next(passing, None)
        except (ReaderLost, OSError, EOFError) as error:
            if not self.workers or "in DataLoader worker process" in str(error):  # of a stage
                raise
            with _undisturbed():
                lost = _why(passing, error)
                _end_readers(passing)
            raise lost from error

    def _put_back(self, loader: DataLoader[Any], passing: Any) -> None:
        if self._idle:
            _end_readers(passing)
        else:
            self._idle.append(loader)


def _batches_ahead(size: int, workers: int) -> int:
    """How many batches of ``size`` bytes each reader makes ahead: 2, or 1 where memory is short.

    Raises:
        UserError: not even one fits.
    """
    memory = _shared_memory()
    if memory is None:
        return 2
    jobs = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine, each with its own readers
    for ahead in (2, 1):
        need = (workers * ahead + 1) * size * jobs  # and the one in the main process
        if need <= memory[0]:
            return ahead
    raise UserError(_too_little(f"{workers} readers need about {_size(need)} for batches of {_size(size)}"))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No news of readers that end meanwhile: torch raises at the next best place when it gets them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _why(passing: Any, error: Exception) -> Exception:
    """How a reader ended; the error itself where none has."""
    if not isinstance(error, ReaderLost) and "Too many open files" in str(error):
        return _too_many_files()
    ended = wait([reader.sentinel for reader in passing._workers], timeout=5)
    codes = []
    for reader in passing._workers:
        if reader.sentinel in ended:
            reader.join()  # it is about to be gone
            codes.append(reader.exitcode)
    if not codes:
        return error
    return _lost(signal.strsignal(-codes[0]) if codes[0] < 0 else f"exit code {codes[0]}")


def _end_referred(passing: weakref.ref[Any]) -> None:
    _end_readers(passing())


def _end_readers(passing: Any) -> None:
    if hasattr(passing, "_shutdown_workers"):
        with _undisturbed():
            passing._shutdown_workers()


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

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    batch.map_tensors(keep)
    return found
