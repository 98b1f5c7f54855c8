"""Bench ``stream``: augmented batches from image files, beside the loaders that people use, by wall and by CPU time.

Each loader works in a process of its own, with readers of its own, and goes through the set when it is its turn: what
one leaves running or in memory is not counted as another's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from kdstream.benches.loaders import LOADERS, Asked
from kdstream.benches.measure import Ratio, alternate, bench, new_table, ratio, whole
from kdstream.convert.image_listing import is_image_name
from kdstream.convert.make_shards import make_shards
from kdstream.errors import UserError
from kdstream.registry import nearest

CLASSES = 10
MOST_GAP = 8.0
"""Grey levels by which a loader's mean may differ from kdstream's over a set: boxes are drawn by each for itself."""


@dataclass(frozen=True)
class Work:
    """What is measured.

    Attributes:
        ours: the loader that the others' times are divided by.
        peers: the others.
        boxes, size, batch: see :class:`~kdstream.benches.loaders.Asked`.
        images: how many a pass has, unless asked otherwise.
        targets: peer -> how many times faster ours shall be.
    """

    about: str
    ours: str
    peers: tuple[str, ...]
    boxes: bool
    size: int
    batch: int
    images: int
    targets: Mapping[str, float] = field(default_factory=dict)


FILES = ("torchvision", "torchvision.io", "webdataset", "litdata", "streaming", "spdl", "dali")
WORKS = {
    "photographs": Work(
        "photographs: random resized crop 224, flip", "kdstream", FILES, True, 224, 64, 1024,
        {"dali": 1.5} | dict.fromkeys(FILES[:-1], 2.5),
    ),
    "small": Work("images 32x32 from files: crop, flip", "kdstream", FILES, False, 32, 128, 6400),
    "cached": Work(
        "images 32x32 kept in memory, kdstream in one process: crop, flip", "kdstream, cached",
        ("torchvision, in memory",), False, 32, 128, 6400, {"torchvision, in memory": 20},
    ),
}  # fmt: skip
"""The works by name."""


class Pass(NamedTuple):
    """One way through the set, in seconds an image: wall time, and CPU time of the loader's processes."""

    wall: float
    cpu: float


class Apart:
    """A loader in a process of its own, which has gone through the set once.

    Args:
        name: of the loader.
        asked: what it shall give.
        threads: torch's.

    Raises:
        UserError: it cannot do it, or what it gives is something else.
    """

    def __init__(self, name: str, asked: Asked, threads: int):
        methods = multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        self.name = name
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, asked, threads, there))
        self._process.start()
        there.close()
        try:
            self.mean: float = self._answer()
            """Grey level of all that it gave."""
        except UserError:
            self.close()
            raise

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise UserError(f"{self.name}: its process has ended (exit code {self._process.exitcode})") from None
        if isinstance(answer, str):
            raise UserError(f"{self.name}: {answer}")
        return answer

    def go(self) -> Pass:
        """Once through the set."""
        self._pipe.send(True)
        return Pass(*self._answer())

    def close(self) -> None:
        """End the process and its readers."""
        self._pipe.close()
        self._process.join(20)
        if self._process.is_alive():
            for process in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
                process.kill()


def _serve(name: str, asked: Asked, threads: int, pipe: Connection) -> None:
    """A loader's process: a mean first, then a pass each time it is told to, until nobody tells it any more."""
    torch.set_num_threads(threads)
    if "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork", force=True)  # readers begin as those of a script do
    try:
        epoch = LOADERS[name].make(asked)
        count, total = 0, 0.0
        for images in epoch():
            wrong = _wrong(images, asked) if count == 0 else None
            if wrong:
                raise ValueError(wrong)
            count += len(images)
            total += images.float().mean().item() * len(images)
        if not count:
            raise ValueError("gives no images")
        pipe.send(total / count)
        while pipe.recv():
            cpu, wall = cpu_seconds(), time.perf_counter()
            count = sum(len(images) for images in epoch())
            pipe.send((*((now - then) / count for now, then in ((time.perf_counter(), wall), (cpu_seconds(), cpu))),))
    except EOFError:  # closed
        return
    except Exception as error:
        pipe.send(" ".join(f"{type(error).__name__}: {error}".split())[:300])


def most_gap(images: int) -> float:
    """By how much the mean grey levels of two passes may differ: the crops are others, of few images very others."""
    return MOST_GAP * max(1.0, 16 / images**0.5)


def _wrong(images: Any, asked: Asked) -> str | None:
    """What is not as asked about a loader's first batch."""
    shape = (asked.batch, 3, asked.size, asked.size)
    if not isinstance(images, torch.Tensor) or (tuple(images.shape), images.dtype) != (shape, torch.uint8):
        told = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, torch.Tensor) else type(images).__name__
        return f"gives {told}, not {shape} torch.uint8"
    low, high = int(images.min()), int(images.max())
    return None if low < 64 and high > 191 else f"its grey levels go from {low} to {high}"


def cpu_seconds() -> float:
    """CPU time of this process and of its children, of which the system counts hundredths of a second."""
    ended = psutil.Process().cpu_times()
    total = time.process_time() + ended.children_user + ended.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def photograph(height: int, width: int, seed: int) -> Image.Image:
    """RGB noise with about the spectrum of photographs: the finer its waves, the weaker; less of it in colours."""
    draw = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0, np.float32)
    for waves, strength in ((2, 55), (5, 40), (12, 24), (40, 12), (120, 8), (max(height, width), 5)):
        grid = draw.normal(size=(waves, waves, 4)).astype(np.float32) * strength
        for c in range(3):
            plane = Image.fromarray(grid[..., 3] + 0.4 * grid[..., c])
            total[..., c] += np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def _images(work: Work, given: Path | None) -> list[tuple[str, bytes]]:
    """(ending, bytes) of different images: those of a folder, or made here."""
    if given is not None:
        files = sorted(path for path in given.rglob("*") if path.is_file() and is_image_name(path.name))
        if not files:
            raise UserError(f"--data {given}: there are no images in it")
        chosen = np.random.default_rng(0).permutation(len(files))[: work.images].tolist()
        return [(files[i].suffix.lower(), files[i].read_bytes()) for i in chosen]
    found = []
    for i in range(min(work.images, 128 if work.boxes else 1000)):
        buffer = io.BytesIO()
        if work.boxes:  # as many upright ones and with halved chroma as there are in ImageNet
            height, width = (500, 375) if i % 4 == 0 else (375, 500)
            photograph(height, width, i).save(buffer, "JPEG", quality=95, subsampling=2 if i % 4 == 1 else 0)
        else:
            photograph(work.size, work.size, i).save(buffer, "JPEG", quality=95)
        found.append((".jpg", buffer.getvalue()))
    return found


def _write(work: Work, folder: Path, given: Path | None, workers: int) -> int:
    """Files and shards of a set; fewer images than a pass has are there several times. Returns bytes an image."""
    images = _images(work, given)
    for i in range(work.images):
        place = folder / "images" / f"{i % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        ending, data = images[i % len(images)]
        (place / f"{i:06d}{ending}").write_bytes(data)
    quiet = Console(quiet=True)
    source = f"imagefolder:{folder / 'images'}"
    make_shards(source, folder / "shards", shard_count=4 * max(1, workers), processes=1, console=quiet)
    return sum(len(data) for _, data in images) // len(images)


def _version(name: str) -> str | None:
    """The version of a loader's package; None where it is not installed."""
    loader = LOADERS[name]
    if loader.package is None:
        return ""
    try:
        if importlib.util.find_spec(loader.package) is None:
            return None
    except ModuleNotFoundError:  # not even the package that it lies in
        return None
    for distribution in loader.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "?"


def _asked(text: str | None, known: Sequence[str], option: str) -> list[str]:
    names = list(known) if text is None else text.split(",")
    for name in names:
        if name not in known:
            raise UserError(f"{option}: there is no {name!r}: {nearest(name, known)}")
    return names


def _measure(work: Work, asked: Asked, peers: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Passes of every loader in turn."""
    loaders: dict[str, Apart] = {}
    failed: dict[str, str] = {}
    passes: dict[str, list[Pass]] = {}
    try:
        for name in (work.ours, *peers):
            try:
                loaders[name] = Apart(name, asked, options.threads)
                gap = abs(loaders[name].mean - loaders[work.ours].mean)
                if gap > most_gap(work.images):
                    loaders.pop(name).close()
                    raise UserError(f"{name}: its mean grey level is {gap:.0f} off kdstream's")
            except UserError as error:
                if name == work.ours:
                    raise
                failed[name] = str(error)
        passes = {name: [] for name in loaders}

        def go(name: str) -> None:
            passes[name].append(loaders[name].go())

        alternate({name: partial(go, name) for name in loaders}, options.seconds)
    finally:
        for loader in loaders.values():
            loader.close()
    rows = []
    for name, all_of_them in passes.items():
        row: dict[str, Any] = {"loader": name, "version": _version(name)}
        row["images_per_second"] = 1 / median(p.wall for p in all_of_them)
        row["cpu_ms_an_image"] = 1e3 * median(p.cpu for p in all_of_them)
        for kind in ("wall", "cpu"):
            rounds = [
                {other: getattr(found[i], kind) for other, found in passes.items()} for i in range(len(all_of_them))
            ]
            row[kind] = ratio(rounds, [name], [work.ours])._asdict()
        row["target"] = work.targets.get(name)
        rows.append(row)
    return {"loaders": rows, "failed": failed}


def _table(work: Work, rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    table = new_table(title, "peer", "version", "images/s", "CPU ms", "x by wall", "x by CPU", "target")
    for row in rows:
        shown = [str(Ratio(**row[kind])) for kind in ("wall", "cpu")]
        target = "" if row["target"] is None else f">= {row['target']:g}"
        ours = row["loader"] == work.ours
        figures = (f"{row['images_per_second']:,.0f}", f"{row['cpu_ms_an_image']:.3g}")
        table.add_row(row["loader"], row["version"], *figures, *(("", "") if ours else shown), target)
    return table


@bench(
    {
        "--work": {"metavar": "A,B", "help": f"of {', '.join(WORKS)} (default: all)"},
        "--peers": {"metavar": "A,B", "help": f"of {', '.join(FILES)} (default: all that are installed)"},
        "--data": {"type": Path, "metavar": "DIR", "help": "photographs to read (default: some are made)"},
        "--images": {
            "type": whole,
            "metavar": "N",
            "help": f"of a pass (default: {WORKS['photographs'].images}, small ones {WORKS['small'].images})",
        },
        "--batch": {"type": whole, "metavar": "N", "help": "images of a batch (default: 64, small ones 128)"},
        "--workers": {"type": whole, "default": 2, "metavar": "N", "help": "reader processes or threads (default: 2)"},
    }
)
def stream(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Batches of augmented images: kdstream's stream against other loaders, each by its own readers."""
    if options.data is not None and not options.data.is_dir():
        raise UserError(f"--data {options.data}: there is no such folder")
    names = _asked(options.work, list(WORKS), "--work")
    wanted = _asked(options.peers, FILES, "--peers")
    absent = [name for name in wanted if _version(name) is None]
    found = []
    for name in names:
        work = WORKS[name]
        images, batch = options.images or work.images, options.batch or work.batch
        if images < batch:
            raise UserError(f"--images {images}: a pass has at least one batch, {batch} images; see --batch")
        work = replace(work, images=images, batch=batch)
        peers = [peer for peer in work.peers if peer in wanted or peer not in FILES]
        peers = [peer for peer in peers if peer not in absent]
        with tempfile.TemporaryDirectory(prefix="kdstream-bench-") as folder:
            with console.status(f"{work.about}: {images:,} images are written"):
                given = options.data if work.boxes else None
                size = _write(work, Path(folder), given, options.workers)
            asked = Asked(Path(folder), work.boxes, work.size, batch, options.workers)
            with console.status(f"{work.about}: {', '.join((work.ours, *peers))}"):
                measured = _measure(work, asked, peers, options)
        files = f"{images:,} files of {size / 1e3:.1f} kB a pass"
        title = f"{work.about}; {files}, batches of {batch}, {options.workers} readers"
        console.print(_table(work, measured["loaders"], title))
        for reason in measured["failed"].values():
            console.print(f"not measured: {reason}", markup=False)
        about = {"work": name, "images": images, "batch": batch, "workers": options.workers, "bytes_an_image": size}
        found.append({**about, **measured})
    console.print("x: the loader's time over kdstream's, median of rounds in turn (range); CPU: of all its processes")
    if absent:
        console.print(f"not installed, hence not measured: {', '.join(absent)}")
    return {"works": found, "not_installed": absent}
