"""Bench ``plan``: plan and index of sets that are far larger than this machine, by files that are mostly holes."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from rich.console import Console

from kdstream.benches.measure import bench, new_table, whole
from kdstream.data.checksums import Checksums
from kdstream.data.dataset_info import SCHEMA, DatasetInfo, ImageSizes, ShardInfo, SplitInfo, fingerprint
from kdstream.data.index import CHECKED_AT_ONCE, INDEX_VERSION, Index
from kdstream.data.shards import open_shards, state_file
from kdstream.errors import UserError
from kdstream.stream.plan import Plan
from kdstream.stream.stream import Stream

CLASSES, SAMPLE, BATCH, STEPS = 1000, 1024, 256, 20
"""Classes of a set, bytes that a sample has in its shard, samples of a batch, batches that are looked up."""
KEY = 10
MOST_SECONDS, MOST_BYTES = 2.0, 50_000_000
"""What opening a set may cost a process: until the first batch's indices are known, and in memory of its own."""


def _counts(text: str) -> list[int]:
    try:
        counts = [int(float(part)) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < BATCH:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers of samples of at least {BATCH}, as 1e6,1e8")
    return counts


class _Holes:
    """An uncompressed npz whose large arrays are holes but for the places that are set."""

    def __init__(self, file: BinaryIO):
        self.file, self.archive = file, zipfile.ZipFile(file, "w")

    def small(self, name: str, value: Any) -> None:
        with self.archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)

    def large(self, name: str, dtype: type, length: int, places: np.ndarray, values: Any) -> None:
        """``values`` at ``places``, 0 elsewhere. Its checksum is not computed: of so large a file none is looked at."""
        entry = zipfile.ZipInfo(f"{name}.npy")
        entry.header_offset, entry.CRC = self.file.tell(), 0
        entry.extra = b"\x35\xd9" + (-(entry.header_offset + 30 + len(entry.filename) + 24) % 64).to_bytes(2, "little")
        entry.extra += bytes(int.from_bytes(entry.extra[2:], "little"))
        self.file.write(entry.FileHeader(zip64=True))
        begin = self.file.tell()
        described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(self.file, described)
        data, size = self.file.tell(), np.dtype(dtype).itemsize
        for place, value in zip(places.tolist(), np.broadcast_to(np.asarray(values, dtype), places.shape), strict=True):
            self.file.seek(data + place * size)
            self.file.write(value.tobytes())
        end = data + length * size
        self.file.truncate(end)
        self.file.seek(end)
        entry.file_size = entry.compress_size = end - begin
        self.archive.filelist.append(entry)
        self.archive.NameToInfo[entry.filename] = entry
        self.archive.start_dir = end
        self.archive._didModify = True  # type: ignore[attr-defined]  # zipfile has no public word for holes

    def close(self) -> None:
        self.archive.close()


def _make(folder: Path, count: int, shards: int) -> None:
    """A data set of ``count`` samples in tars that are holes; its index is true where the measured batches look."""
    names = [f"train-{k:06d}.tar" for k in range(shards)]
    bounds = [k * count // shards for k in range(shards + 1)]
    infos = []
    for k, name in enumerate(names):
        part = bounds[k + 1] - bounds[k]
        with open(folder / name, "wb") as file:
            file.truncate(part * SAMPLE)
        infos.append(ShardInfo(name=name, count=part, bytes=part * SAMPLE, sha256=f"{k:064x}"))
    mark, plan = fingerprint(infos), Plan(count, BATCH)
    index_path = folder / "train.index.npz"
    tag = {"version": INDEX_VERSION, "tag": mark, "shard_names": names, "extensions": ["jpg", "cls"]}
    tag["shard_bytes"] = np.diff(bounds) * SAMPLE
    tag["largest_label"] = CLASSES - 1
    looked_up = torch.cat([plan.batch(epoch, step) for epoch, step in _looked_up(plan)]).unique().numpy()
    if count * 70 <= CHECKED_AT_ONCE:  # checked as a whole when it is opened, hence it has to be whole
        looked_up = np.arange(count)
    shard = np.searchsorted(np.asarray(bounds), looked_up, side="right") - 1
    begin = (looked_up - np.asarray(bounds)[shard]) * SAMPLE
    ends, pairs = np.append(looked_up, [*(looked_up + 1), 0, count]), np.append(looked_up * 2, looked_up * 2 + 1)
    offsets, sizes = np.append(begin, begin + 512), np.repeat([400, 1], len(looked_up))
    columns: dict[str, tuple[type, int, np.ndarray, Any]] = {
        "shard": (np.int32, count, looked_up, shard),
        "label": (np.int64, count, looked_up, looked_up % CLASSES),
        "first": (np.int64, count + 1, ends, ends * 2),
        "offset": (np.int64, 2 * count, pairs, offsets),
        "size": (np.int64, 2 * count, pairs, sizes),
        "extension": (np.uint16, 2 * count, pairs, np.repeat([0, 1], len(looked_up))),
        "key_first": (np.int64, count + 1, ends, ends * KEY),
        "key_text": (np.uint8, KEY * count, np.zeros(0, np.int64), 0),
    }
    if len(looked_up) == count:
        arrays: dict[str, np.ndarray] = {}
        for name, (dtype, length, places, values) in columns.items():
            arrays[name] = np.zeros(length, dtype)
            arrays[name][places] = values
        about: dict[str, Any] = {name: tag[name] for name in ("shard_names", "extensions", "shard_bytes")}
        Index(tag=mark, largest_label=CLASSES - 1, **(about | arrays)).save(index_path)
    else:
        with open(index_path, "wb") as file:
            holes = _Holes(file)
            for name, value in tag.items():
                holes.small(name, value)
            for name, column in columns.items():
                holes.large(name, *column)
            holes.close()
    with open(index_path, "rb") as file:  # pages that are not on disk yet would count as the process's own
        os.fsync(file.fileno())
    sizes_told = ImageSizes(min=(32, 32), max=(32, 32))
    split = SplitInfo(
        count=count, index=index_path.name, fingerprint=mark, image_size=sizes_told, mean=(0.5,) * 3, std=(0.2,) * 3,
        shards=infos,
    )  # fmt: skip
    classes = [str(number) for number in range(CLASSES)]
    DatasetInfo(schema=SCHEMA, classes=classes, splits={"train": split}, source="bench", made={}).save(folder)
    time.sleep(0.03)  # the clock of the file system has moved on since
    memory = Checksums(folder, state_file("train"))
    for info in infos:
        memory.remember(info.name, info.sha256)
    memory.save()


def _looked_up(plan: Plan) -> list[tuple[int, int]]:
    """(epoch, step) of the batches that are measured: the first ones, and those behind a late restart."""
    late = plan.steps * 3 // 4
    last = min(late + STEPS, plan.steps)
    return [*((0, step) for step in range(min(STEPS, plan.steps))), *((1, step) for step in range(late, last))]


def _memory() -> dict[str, int]:
    """Bytes of this process: ``own``, which no other shares, and ``mapped`` pages of files, which all share."""
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    own = found["Private_Dirty"]
    return {"own": own, "mapped": found["Rss"] - found["Anonymous"]}


def _look(stream: Stream, batches: list[tuple[int, int]]) -> int:
    """Look up where the samples of these batches lie; gives how many there are."""
    index = stream.dataset._index
    seen = 0
    for epoch, step in batches:
        for i in stream.plan.batch(epoch, step).tolist():
            assert len(index.members(i)) == 2
            assert index.label[i] == i % CLASSES
            seen += len(index.key(i)) > 0
    return seen


def _measure(folder: Path, sent: Any) -> None:
    """In a process of its own: what it costs to open the set, to find batches, to go on late, and to fork a reader."""
    torch.set_num_threads(1)
    before = _memory()
    start, worked = time.perf_counter(), time.process_time()
    stream = Stream(open_shards(folder / "train"), BATCH)
    first = stream.plan.batch(0, 0)
    assert len(stream.dataset.labels[first.numpy()]) == BATCH
    opened, opened_cpu = time.perf_counter() - start, time.process_time() - worked
    batches = _looked_up(stream.plan)
    early, late = [b for b in batches if b[0] == 0], [b for b in batches if b[0] == 1]
    start = time.perf_counter()
    for epoch, step in early:
        stream.plan.batch(epoch, step)
    planned = (time.perf_counter() - start) / len(early)
    start = time.perf_counter()
    assert _look(stream, early) == len(early) * BATCH
    batch = (time.perf_counter() - start) / len(early)
    start = time.perf_counter()
    stream.load_state_dict({"epoch": 1, "step": late[0][1]})
    assert stream.state_dict()["step"] == late[0][1]
    _look(stream, late[:1])
    resumed = time.perf_counter() - start - batch
    after = _memory()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def read() -> None:
        begun = _memory()
        _look(stream, late)
        there.send({name: value - begun[name] for name, value in _memory().items()})

    reader = context.Process(target=read)
    reader.start()
    forked = here.recv()
    reader.join()
    sent.send(
        {
            "open_s": opened,
            "open_cpu_s": opened_cpu,
            "plan_ms": 1e3 * planned,
            "batch_ms": 1e3 * batch,
            "resume_s": max(resumed, 0.0),
            "own_bytes": after["own"] - before["own"],
            "mapped_bytes": after["mapped"] - before["mapped"],
            "fork_bytes": forked["own"],
            "process_bytes": after["own"],
        }
    )


@bench(
    {
        "--samples": {
            "type": _counts,
            "default": [10**6, 10**8, 10**9],
            "metavar": "N,N",
            "help": "samples of the sets (default: 1e6,1e8,1e9)",
        },
        "--shards": {"type": whole, "default": 10_000, "metavar": "N", "help": "of each set (default: 10,000)"},
    }
)
def plan(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Open sets of up to a billion samples: time to the first batch, of a batch, of a late restart, and memory."""
    if not os.path.exists("/proc/self/smaps_rollup"):
        raise UserError("bench plan reads the memory of its processes from /proc, as Linux has it")
    table = new_table(
        f"batches of {BATCH}, {options.shards:,} shards; memory beyond what the process has with torch imported",
        *(
            "samples",
            "first batch s",
            "of it CPU s",
            "plan ms",
            "batch ms",
            "restart s",
            "own MB",
            "mapped MB",
            "forked reader MB",
        ),
    )
    rows = []
    for count in options.samples:
        with tempfile.TemporaryDirectory(prefix="kdstream-bench-") as folder:
            with console.status(f"making the index of {count:,} samples"):
                _make(Path(folder), count, min(options.shards, count))
            context = multiprocessing.get_context("spawn")  # what a reader is on systems without fork
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_measure, args=(Path(folder), there))
            process.start()
            there.close()
            try:
                found = here.recv()
            except EOFError:
                raise UserError(f"the process that opened {count:,} samples has died") from None
            process.join()
        rows.append({"samples": count, "shards": options.shards, **found})
        megabytes = (f"{found[name] / 1e6:.1f}" for name in ("own_bytes", "mapped_bytes", "fork_bytes"))
        times = (
            f"{found['open_s']:.2f}",
            f"{found['open_cpu_s']:.2f}",
            f"{found['plan_ms']:.2f}",
            f"{found['batch_ms']:.1f}",
        )
        table.add_row(f"{count:,}", *times, f"{found['resume_s']:.2f}", *megabytes)
    console.print(table)
    console.print(f"targets: first batch and restart < {MOST_SECONDS:.0f} s, own < {MOST_BYTES / 1e6:.0f} MB")
    return {"batch": BATCH, "sets": rows, "targets": {"seconds": MOST_SECONDS, "bytes": MOST_BYTES}}
