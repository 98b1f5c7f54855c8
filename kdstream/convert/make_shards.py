"""make_shards: from a source of images to a data set folder; parallel, and continued where it was interrupted."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

import kdstream
from kdstream.addresses import is_url, public
from kdstream.atomic import write_atomic
from kdstream.convert.hold_out import hold_out as held_out
from kdstream.convert.open_source import open_source
from kdstream.convert.reading_cost import MEASURED, cost_of, is_large
from kdstream.convert.shards_on_ray import run_on_ray
from kdstream.convert.smaller import QUALITY, Smaller
from kdstream.convert.split import Source, Split
from kdstream.convert.writer import ShardRecord, unreadable, write_shard
from kdstream.data.dataset_info import (
    DATASET_FILE,
    SCHEMA,
    WORK_FOLDER,
    DatasetInfo,
    ImageSizes,
    ShardInfo,
    SkippedInfo,
    SplitInfo,
    fingerprint,
    load_dataset_info,
)
from kdstream.data.image_file import MAX_PIXELS
from kdstream.data.image_stats import ImageStats
from kdstream.data.index import BLOCK, IndexBuilder
from kdstream.data.shards import record_checksums
from kdstream.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

TRAIN = "train"
"""The split that a choice of images is for."""
SHARD_SIZE = 100_000_000
"""Bytes of a shard, about, when nothing else is asked for; smaller sets get up to 8 shards of 1,000 images or more."""
PLAN_FILE = "plan.json"
SHARD_NAME, INDEX_NAME = r"[A-Za-z0-9_]+-[0-9]{6}\.tar", r"[A-Za-z0-9_]+\.index\.npz"
MAX_SHARDS = 1_000_000  # names have six digits
LOCK_SECONDS = 5  # workers of a killed conversion need a moment to notice
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_ADJUSTED = {
    "orientation": "are turned upright, as their EXIF data says",
    "alpha": "have transparent parts, which become white",
    "depth": "have more than 8 bits a channel, of which the upper 8 are used",
    "frames": "have several frames, of which the first is used",
    "format": "are of another format than their name says",
}


@dataclass(frozen=True)
class Conversion:
    """What :func:`make_shards` did.

    Attributes:
        path: the data set folder.
        info: its dataset.json.
        converted: images written by this call; less than all when an interrupted conversion was continued.
        kept_shards: shards that an earlier, interrupted call had finished.
        seconds: how long writing took.
        notes: what was found in the source that a user should know.
    """

    path: Path
    info: DatasetInfo
    converted: int
    kept_shards: int
    seconds: float
    notes: list[str]


def make_shards(
    source: str | Source,
    dest: str | os.PathLike[str],
    *,
    splits: Sequence[str] | None = None,
    shard_size: int | None = None,
    shard_count: int | None = None,
    processes: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    per_class: int | None = None,
    only: str | os.PathLike[str] | None = None,
    on_error: str = "stop",
    max_pixels: int = MAX_PIXELS,
    resize: int | None = None,
    quality: int = QUALITY,
    hold_out: float | None = None,
    distributor: str = "processes",
    force: bool = False,
    console: Console | None = None,
) -> Conversion:
    """Convert a source of images to a data set folder of WebDataset shards.

    Images keep their bytes. Samples are shuffled by ``seed``, then cut into shards; the same arguments give the same
    bytes in every file, whatever the number of processes and however often the conversion was interrupted. The
    folder counts as a data set once dataset.json is there, which is written last.

    Args:
        source: see :func:`~kdstream.convert.open_source.open_source`; or what that gives.
        dest: the data set folder; new, empty, or left by the same call when that was interrupted.
        splits: these splits only; for a source without splits, one name instead of "train".
        shard_size: bytes of a shard, about. Default: 100 MB, and up to 8 shards of at least 1,000 images.
        shard_count: shards of each split, instead of a size.
        processes: how many write shards at the same time; default: one per available core.
        seed: of the shuffle.
        limit: the first so many images of each split, after the shuffle.
        per_class: the first so many images of each class of the split ``train``, after the shuffle.
        only: text file with a name a line (of a file, with or without its folder and extension, or a key): of the
            split ``train``, these images alone.
        on_error: "stop" at an image that cannot be decoded, or "skip" it and note it in dataset.json.
        max_pixels: images of more count as unreadable.
        resize: images whose shorter side has more pixels are made smaller, to a shorter side of so many, and stored as
            JPEG; see :class:`~kdstream.convert.smaller.Smaller`. The others keep their bytes.
        quality: of that JPEG, 1 to 100.
        hold_out: share of each class of "train" that becomes the split "val"; see
            :func:`~kdstream.convert.hold_out.hold_out`.
        distributor: "processes" of this machine, or "ray"; see :func:`~kdstream.convert.shards_on_ray.run_on_ray`.
        force: replace what stands in ``dest``, if it was made by this function.
        console: where a progress bar is shown; None: nowhere.

    Raises:
        UserError: bad arguments or source; ``dest`` holds something else; an image cannot be decoded; disk full.
    """
    _check_arguments(shard_size, shard_count, processes, limit, per_class, max_pixels, on_error, distributor)
    if is_url(dest):
        raise UserError(f"{public(dest)} is an address, shards are made in a folder: name one, then copy all its files")
    smaller = None if resize is None else Smaller(resize, quality)
    named = source if isinstance(source, str) else source.name
    folder = Path(os.path.abspath(os.path.expanduser(os.fspath(dest))))
    try:
        _check_folder(folder, force)
        with console.status(f"reading {named}") if console is not None else contextlib.nullcontext():
            opened = open_source(source, splits) if isinstance(source, str) else source
            if hold_out is not None:
                opened = held_out(opened, hold_out, seed)
            if opened.root is not None and folder.is_relative_to(opened.root):
                raise UserError(f"{folder} lies inside the source {opened.root}: name a folder outside of it")
            if (per_class is not None or only is not None) and TRAIN not in opened.splits:
                raise UserError(f"images are chosen from the split 'train', {named} has {', '.join(opened.splits)}")
            jobs = {
                name: _Job.plan(
                    name,
                    split,
                    seed,
                    _chosen(split, per_class, only) if name == TRAIN else None,
                    limit,
                    shard_size,
                    shard_count,
                )
                for name, split in opened.splits.items()
            }
    except OSError as error:
        raise UserError(f"cannot read {error.filename or named}: {error.strerror or error}") from error
    if on_error == "stop":
        _check_readable(jobs)
    plan = _plan_record(opened, jobs, seed, limit)
    listed = None if only is None else hashlib.sha256(Path(only).read_bytes()).hexdigest()
    plan |= {key: value for key, value in (("per_class", per_class), ("only", listed)) if value is not None}
    sizes = {} if smaller is None else {"resize": smaller.short, "quality": smaller.quality}
    plan |= sizes
    options = {
        "splits": list(jobs),
        "shard_size": shard_size,
        "shard_count": shard_count,
        "seed": seed,
        "limit": limit,
        **({} if per_class is None else {"per_class": per_class}),
        **({} if only is None else {"only": os.path.basename(only)}),
        "on_error": on_error,
        "max_pixels": max_pixels,
        **sizes,
        **({} if hold_out is None else {"hold_out": hold_out}),
    }
    write = partial(write_shard, skip_errors=on_error == "skip", max_pixels=max_pixels, smaller=smaller)
    advice: list[str] = []
    try:
        (folder / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if (folder / DATASET_FILE).exists() and _stored_plan(folder) == plan:
                # Killed after the last file was written, before the work folder was removed.
                kept, converted, seconds = 0, 0, 0.0
                info = load_dataset_info(folder)
            else:
                _prepare(folder, plan, force)
                begin, started = time.monotonic(), time.time_ns()
                kept, converted = _write_all(folder, jobs, processes, distributor, write, console)
                seconds = time.monotonic() - begin
                info = DatasetInfo(
                    schema=SCHEMA,
                    classes=opened.classes,
                    splits={name: _finish_split(folder, job, advice) for name, job in jobs.items()},
                    source=opened.name,
                    made={"by": f"kdstream {kdstream.__version__}", "options": options},
                )
                info.save(folder)
                record_checksums(folder, info, started)
            _remove_work(folder)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}{where}; mend that, then the same command continues"
        ) from error
    return Conversion(folder, info, converted, kept, seconds, opened.notes + _adjusted_notes(info) + advice)


def parse_size(text: str) -> int:
    """Bytes from ``100M``, ``2.5G``, ``500K`` or a plain number; K, M, G are powers of 1000.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]?)B?\s*", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise UserError(f"shard size {text!r} is no size: write 100M, 2.5G or a number of bytes")
    return int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[2].upper()])


# ---- the plan


@dataclass(frozen=True)
class _Job:
    """One split's images in the order of its shards, cut into shards."""

    name: str
    images: Split
    order: list[int]
    shards: int

    @classmethod
    def plan(
        cls,
        name: str,
        images: Split,
        seed: int,
        chosen: Callable[[list[int]], list[int]] | None,
        limit: int | None,
        shard_size: int | None,
        shard_count: int | None,
    ) -> _Job:
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise UserError(f"split {name!r} cannot name shards: use letters, digits and _ only")

        def rank(i: int) -> bytes:
            # A hash instead of a random generator: the order depends on the keys, not on a library's version.
            return hashlib.blake2b(f"{seed} {name} {images.keys[i]}".encode(), digest_size=16).digest()

        order = sorted(range(len(images)), key=rank)
        order = (order if chosen is None else chosen(order))[:limit]
        # Each sample is two members, with a header each, padded to whole blocks.
        total = (images.nbytes() / len(images) + 4.5 * BLOCK) * len(order)
        if shard_count is not None:
            shards = min(shard_count, len(order))
        elif shard_size is not None:
            shards = -(-int(total) // shard_size)
        else:
            shards = max(-(-int(total) // SHARD_SIZE), min(8, len(order) // 1000), 1)
        shards = min(shards, len(order))
        if shards > MAX_SHARDS:
            raise UserError(f"split {name!r} would make {shards:,} shards, at most {MAX_SHARDS:,}: use larger ones")
        return cls(name, images, order, shards)

    def shard_name(self, k: int) -> str:
        return f"{self.name}-{k:06d}.tar"

    def record_name(self, k: int) -> str:
        return f"{self.name}-{k:06d}.json"

    def numbers(self, k: int) -> list[int]:
        """The images of shard k; the shards differ by one image at most."""
        n = len(self.order)
        return self.order[k * n // self.shards : (k + 1) * n // self.shards]


def _chosen(
    images: Split, per_class: int | None, only: str | os.PathLike[str] | None
) -> Callable[[list[int]], list[int]]:
    """What keeps the wanted ones of a split's images, in their order.

    Raises:
        UserError: a list that names images that are not there, or none.
    """
    wanted = None if only is None else _listed(images, Path(only))

    def choose(order: list[int]) -> list[int]:
        taken: Counter[int] = Counter()
        kept = []
        for i in order:
            label = int(images.labels[i])
            if (wanted is None or i in wanted) and (per_class is None or taken[label] < per_class):
                taken[label] += 1
                kept.append(i)
        return kept

    return choose


def _listed(images: Split, file: Path) -> set[int]:
    """The images that a file names."""
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{file} is no text") from None
    numbers: dict[str, list[int]] = {}
    for i, key in enumerate(images.keys):
        place = images.where(i)
        base = os.path.basename(place)
        for name in {key, key.rpartition("/")[2], base, os.path.splitext(base)[0]}:
            numbers.setdefault(name, []).append(i)
    found: set[int] = set()
    for line, name in enumerate(names, 1):
        hits = next((numbers[one] for one in (name, os.path.basename(name)) if one in numbers), [])
        if len(hits) != 1:
            what = "is no image of the split 'train'" if not hits else f"may be any of {len(hits):,} images"
            raise UserError(f"{file}, line {line}: {name!r} {what}")
        found.add(hits[0])
    if not found:
        raise UserError(f"{file} names no image")
    return found


def _check_readable(jobs: Mapping[str, _Job]) -> None:
    """Refuse files that cannot be read before the work begins, as far as that is known."""
    refused = [(job.images, i) for job in jobs.values() if job.images.refused for i in job.order]
    refused = [(images, i) for images, i in refused if i in images.refused]
    if not refused:
        return
    images, i = min(refused, key=lambda one: one[0].where(one[1]))
    kinds = Counter(images.refused[i].partition(":")[0] for images, i in refused)
    others = (
        f" (one of {len(refused):,} such files: {', '.join(f'{n:,} x {kind}' for kind, n in sorted(kinds.items()))})"
    )
    place = images.where(i).encode("utf-8", "backslashreplace").decode()
    raise unreadable(place, f"it is {images.refused[i]}{others if len(refused) > 1 else ''}")


def _adjusted_notes(info: DatasetInfo) -> list[str]:
    """What is done to images when they are read, one line a split."""
    notes = []
    for name, split in info.splits.items():
        said = [f"{split.adjusted[what]:,} {text}" for what, text in _ADJUSTED.items() if what in split.adjusted]
        if said:
            notes.append(f"of the images in {name}, {'; '.join(said)}; the files are stored as they are")
        if count := split.adjusted.get("resized"):
            how = info.made["options"]
            notes.append(
                f"{count:,} of {split.count:,} images in {name} were made smaller, to a shorter side of "
                f"{how['resize']:,} pixels, as JPEG of quality {how['quality']}"
            )
    return notes


def _plan_record(source: Source, jobs: dict[str, _Job], seed: int, limit: int | None) -> dict[str, Any]:
    """Everything that the bytes of the shards depend on: a half-made folder is continued by an equal plan only."""
    return {
        "schema": SCHEMA,
        "source": source.name.partition(":")[0],
        "classes": hashlib.sha256(json.dumps(source.classes).encode()).hexdigest(),
        "seed": seed,
        "limit": limit,
        "splits": list(jobs),
        "shards": [job.shards for job in jobs.values()],
        "images": [job.images.identity() for job in jobs.values()],
    }


def _stored_plan(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / WORK_FOLDER / PLAN_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    for name in ("schema", "source", "splits", "seed", "limit", "per_class", "only", "resize", "quality", "shards"):
        if old.get(name) != new.get(name):
            return f"by another command ({name} {_plain(old.get(name))}, now {_plain(new.get(name))})"
    return "from other images: the source has changed since"


def _plain(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


# ---- the folder


def _check_arguments(
    shard_size: int | None,
    shard_count: int | None,
    processes: int | None,
    limit: int | None,
    per_class: int | None,
    max_pixels: int,
    on_error: str,
    distributor: str,
) -> None:
    if shard_size is not None and shard_count is not None:
        raise UserError("give a shard size or a shard count, not both")
    for what, value in (
        ("shard size", shard_size),
        ("shard count", shard_count),
        ("number of processes", processes),
        ("limit", limit),
        ("number of images per class", per_class),
        ("number of pixels", max_pixels),
    ):
        if value is not None and value < 1:
            raise UserError(f"the {what} must be at least 1, not {value}")
    if on_error not in ("stop", "skip"):
        raise UserError(f"on_error is 'stop' or 'skip', not {on_error!r}")
    if distributor not in ("processes", "ray"):
        raise UserError(f"distributor is 'processes' or 'ray', not {distributor!r}")
    if distributor == "ray" and processes is not None:
        raise UserError("a Ray cluster says itself how many processes it has: leave the number of processes out")


def _check_folder(folder: Path, force: bool) -> None:
    """Refuse early, before a long look at the source."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a new folder for the shards")
    if not folder.exists() or (folder / WORK_FOLDER).is_dir():
        return
    if (folder / DATASET_FILE).exists():
        if not force:
            raise UserError(
                f"{folder} already holds a finished data set: replace it with --force, or name another folder"
            )
        _check_ours(folder / DATASET_FILE)
    elif any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no shards made by make_shards: name a new folder")


def _check_ours(path: Path) -> None:
    """--force may replace a damaged dataset.json, but not another program's file of that name."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError:
        return
    if not (isinstance(data, dict) and "schema" in data):
        raise UserError(f"{path} was not made by make_shards, --force does not replace it: name a new folder")


def _finished(folder: Path) -> UserError:
    return UserError(f"{folder} already holds a finished data set: replace it with --force, or name another folder")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One conversion at a time in a folder. The lock ends with the process, however that ends."""
    lock = FileLock(folder / WORK_FOLDER / "lock")
    held = False
    try:
        lock.acquire(timeout=LOCK_SECONDS, poll_interval=0.1)
        held = True
    except Timeout:
        raise UserError(f"another make_shards is writing to {folder}: wait for it, or stop it") from None
    except NotImplementedError:  # a file system without locks; then two at once are the user's own fault
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        if held:
            with contextlib.suppress(OSError):
                lock.release(force=True)


def _prepare(folder: Path, plan: dict[str, Any], force: bool) -> None:
    work = folder / WORK_FOLDER
    if (folder / DATASET_FILE).exists():
        if not force:
            raise UserError(
                f"{folder} already holds a finished data set: replace it with --force, or name another folder"
            )
        os.replace(folder / DATASET_FILE, work / "replaced.json")  # from here on the folder is half-made
    old = _stored_plan(folder)
    started = any(re.fullmatch(SHARD_NAME, path.name) for path in folder.iterdir())
    if old is not None and old != plan and started and not force:
        raise UserError(
            f"{folder} is half-made {_difference(old, plan)}: repeat that command to finish it, "
            "or start over with --force"
        )
    if old != plan:
        # Shards go before records, the plan last: until it is written, nothing that is left counts as finished.
        (work / PLAN_FILE).unlink(missing_ok=True)
        for path in folder.iterdir():
            if re.fullmatch(f"{SHARD_NAME}|{INDEX_NAME}", path.name):
                path.unlink()
        for path in work.iterdir():
            if path.name != "lock":
                path.unlink()
        write_atomic(work / PLAN_FILE, json.dumps(plan).encode())
    for path in work.glob("*.tmp"):
        path.unlink()


def _remove_work(folder: Path) -> None:
    """The plan goes after the records: as long as it is there, the same command knows that it had finished. The set is
    whole by now: what cannot be removed stays."""
    work = folder / WORK_FOLDER
    with contextlib.suppress(OSError):
        for path in work.iterdir():
            if path.name not in (PLAN_FILE, "lock"):
                path.unlink()
        shutil.rmtree(work)


# ---- writing


@dataclass(frozen=True)
class _Task:
    """One shard to write; ``split`` is the number of its split, for the count of images."""

    split: int
    images: Split
    path: Path
    record_path: Path


_Write = Callable[..., ShardRecord]
"""(images, path, record path, tick=...) -> writes one shard: write_shard, told what else it needs to know."""


def _write_all(
    folder: Path,
    jobs: dict[str, _Job],
    processes: int | None,
    distributor: str,
    write: partial[ShardRecord],
    console: Console | None,
) -> tuple[int, int]:
    """Write what is missing. Returns (shards that were there, images of the shards that were not)."""
    tasks: list[_Task] = []
    present = [0] * len(jobs)
    kept = 0
    for number, job in enumerate(jobs.values()):
        for k in range(job.shards):
            path, record_path = folder / job.shard_name(k), folder / WORK_FOLDER / job.record_name(k)
            if _is_finished(path, record_path, write.keywords["skip_errors"], write.keywords["max_pixels"]):
                kept += 1
                present[number] += len(job.numbers(k))
            else:
                tasks.append(_Task(number, job.images.subset(job.numbers(k)), path, record_path))
    if processes is None:
        few = sum(len(task.images) for task in tasks) < 4000  # done before a second process has started
        processes = 1 if few else _cores()
    mark = folder / WORK_FOLDER / PLAN_FILE
    if console is None:
        _run(tasks, len(jobs), processes, distributor, write, mark, lambda counts: None)
    else:
        from kdstream.bars import conversion_progress

        totals = {name: len(job.order) for name, job in jobs.items()}
        with conversion_progress(console, totals, present) as (start, update):
            _run(tasks, len(jobs), processes, distributor, write, mark, update, start)
    return kept, sum(len(task.images) for task in tasks)


def _is_finished(path: Path, record_path: Path, skip_errors: bool, max_pixels: int) -> bool:
    if not (path.is_file() and record_path.is_file()):
        return False
    try:
        record = ShardRecord.load(record_path)
    except (ValueError, KeyError, TypeError):  # damaged: the shard is written anew
        return False
    if path.stat().st_size != record.bytes:
        return False
    height, width = record.stats.largest or (0, 0)
    if height * width > max_pixels or any("--max-pixels" in reason for _, reason in record.skipped):
        return False  # the bound may have been another
    if record.skipped and not skip_errors:
        raise unreadable(*record.skipped[0])
    return True


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    tasks: Sequence[_Task],
    splits: int,
    processes: int,
    distributor: str,
    write: _Write,
    mark: Path,
    update: Callable[[Sequence[int]], None],
    start: Callable[[], None] = lambda: None,
) -> None:
    """Write the shards, here, in processes or on a cluster. ``update`` is given the images done of each split, now and
    then."""
    if distributor == "ray":
        start()
        if tasks:
            run_on_ray(tasks, splits, write, mark, update)
        return
    if processes == 1 or len(tasks) < 2:
        start()
        counts = [0] * splits
        for task in tasks:

            def tick(split: int = task.split) -> None:
                counts[split] += 1
                if sum(counts) % 64 == 0:
                    update(counts)

            write(task.images, task.path, task.record_path, tick=tick)
        update(counts)
        return
    # Forked workers inherit the lists of files and need no import of the caller's script.
    method = "fork" if sys.platform == "linux" else None
    context: Any = multiprocessing.get_context(method)
    counts, turn, errors = context.Array("q", splits), context.Value("q", 0), context.SimpleQueue()
    workers = [
        context.Process(target=_work, args=(tasks, turn, counts, errors, write, os.getpid()), daemon=True)
        for _ in range(min(processes, len(tasks)))
    ]
    try:
        with _signals_held():
            for worker in workers:
                worker.start()
        start()  # the bar's thread only now: forking a process with threads is asking for trouble
        while alive := [worker for worker in workers if worker.is_alive()]:
            wait([worker.sentinel for worker in alive], timeout=0.1)
            update(counts[:])
            if any(worker.exitcode for worker in workers):
                break
        if any(worker.exitcode for worker in workers):
            if not errors.empty():
                raise UserError(errors.get())
            code = next(worker.exitcode for worker in workers if worker.exitcode)
            raise UserError(
                f"a process that writes shards died (exit code {code}; out of memory?): run the same command again "
                "to continue, with fewer --processes"
            )
        update(counts[:])
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            if worker.pid is not None:
                worker.join()


_SIGNALS = {signal.SIGINT, signal.SIGTERM}


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Signals wait meanwhile: a process that has just been forked would answer as its parent does."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(tasks: Sequence[_Task], turn: Any, counts: Any, errors: Any, write: _Write, parent: int) -> None:
    """A worker: takes the next shard until there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    while True:
        with turn.get_lock():
            number = turn.value
            turn.value += 1
        if number >= len(tasks):
            return
        task = tasks[number]

        def tick(split: int = task.split) -> None:
            with counts.get_lock():
                counts.get_obj()[split] += 1

        try:
            write(task.images, task.path, task.record_path, tick=tick)
        except (UserError, OSError, MemoryError) as error:
            errors.put(str(error) or type(error).__name__)
            raise SystemExit(1) from None


def _die_with(parent: int) -> None:
    """End this process once its parent is gone, which a killed parent cannot do itself."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


# ---- the end


def _finish_split(folder: Path, job: _Job, advice: list[str]) -> SplitInfo:
    """Write the split's index; returns its part of dataset.json. ``advice`` gets what training from it will cost, where
    that is much."""
    builder, stats = IndexBuilder(), ImageStats()
    shards: list[ShardInfo] = []
    skipped: list[SkippedInfo] = []
    for k in range(job.shards):
        record = ShardRecord.load(folder / WORK_FOLDER / job.record_name(k))
        builder.add_shard(record.name, record.bytes)
        for key, label, members in record.samples:
            builder.add_sample(key, label, members)
        stats.merge(record.stats)
        shards.append(ShardInfo(name=record.name, count=len(record.samples), bytes=record.bytes, sha256=record.sha256))
        skipped += [SkippedInfo(file=file, error=error) for file, error in record.skipped]
    if stats.smallest is None or stats.largest is None:
        raise UserError(f"none of the images of split {job.name!r} could be read, e.g. {skipped[0].file}")
    mean, std = stats.mean_std()
    mark = fingerprint(shards)
    if is_large(stats):
        advice += cost_of(job.name, job.images, job.order[:MEASURED], stats)
    builder.finish(mark).save(folder / f"{job.name}.index.npz")
    return SplitInfo(
        count=stats.count,
        index=f"{job.name}.index.npz",
        fingerprint=mark,
        image_size=ImageSizes(min=stats.smallest, max=stats.largest),
        mean=mean,
        std=std,
        shards=shards,
        skipped=skipped,
        adjusted=dict(sorted(stats.adjusted.items())),
    )
