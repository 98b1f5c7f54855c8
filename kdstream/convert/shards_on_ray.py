"""Writing shards on the machines of a Ray cluster, instead of in processes of this one."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from kdstream.convert.split import Split
from kdstream.errors import UserError


class ShardTask(Protocol):
    """What is to be written where; see :func:`kdstream.convert.writer.write_shard`."""

    @property
    def split(self) -> int:
        """The number of its split, for the count of images."""

    @property
    def images(self) -> Split:
        """The shard's."""

    @property
    def path(self) -> Path:
        """The shard."""

    @property
    def record_path(self) -> Path:
        """What is noted of it."""


AHEAD = 2
"""Shards that wait for each core of the cluster: what is sent with them stands in memory."""


def run_on_ray(
    tasks: Sequence[ShardTask],
    splits: int,
    write: Callable[[Split, Path, Path], Any],
    mark: Path,
    update: Callable[[Sequence[int]], None],
) -> None:
    """Write the shards by Ray tasks: on the cluster of ``RAY_ADDRESS``, or on this machine where it names none.

    Every machine needs kdstream, the source and the folder of the shards at the same paths: a file system that all of
    them share. What goes to them, lists of file names and settings, Ray packs in its own way, pickles among it: a
    cluster is as much trusted as this machine.

    Args:
        tasks: the shards.
        splits: how many there are.
        write: (images, path, record path) -> writes one; whatever else it needs, it has.
        mark: a file that a machine sees if it sees the folder of the shards.
        update: is given the images done of each split, whenever a shard is.

    Raises:
        UserError: Ray is not installed or cannot be reached; of a task, as without Ray.
    """
    try:
        import ray
    except ImportError:
        raise UserError('ray is not installed: pip install "kdstream[ray]", or leave --distributor out') from None
    counts = [0] * splits
    with _connected(ray):
        remote = ray.remote(num_cpus=1, max_retries=2)(_write)
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting: dict[Any, ShardTask] = {}
        left = iter(tasks)
        try:
            while True:
                while len(waiting) < AHEAD * cores and (task := next(left, None)) is not None:
                    waiting[remote.remote(write, task.images, task.path, task.record_path, mark)] = task
                if not waiting:
                    return
                done, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
                for reference in done:
                    task = waiting.pop(reference)
                    problem = _answer(ray, reference, task)
                    if problem:
                        raise UserError(problem)
                    counts[task.split] += len(task.images)
                    update(counts)
        finally:
            for reference in waiting:
                with contextlib.suppress(Exception):  # what has ended meanwhile cannot be ended
                    ray.cancel(reference, force=True)


def _write(write: Callable[[Split, Path, Path], Any], images: Split, path: Path, record: Path, mark: Path) -> str:
    """In a process of the cluster: write one shard; gives what went wrong."""
    if not mark.is_file():
        return (
            f"the machine {socket.gethostname()} of the cluster does not see {path.parent}: source and shards have to "
            "lie on a file system that all its machines share"
        )
    try:
        write(images, path, record)
    except (UserError, OSError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""


def _answer(ray: Any, reference: Any, task: ShardTask) -> str:
    try:
        return str(ray.get(reference))
    except ray.exceptions.RayError as error:
        said = " ".join(str(error).split())[-300:]
        return f"shard {task.path} was not written on the cluster ({said}): run the same command again to continue"


@contextlib.contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Ray as the caller has started it; else started here, and ended."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    alone = {} if address else {"include_dashboard": False}  # settings of a cluster are for who starts it
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **alone)
    except Exception as error:  # of a dozen kinds
        raise UserError(f"cannot reach a Ray cluster ({' '.join(str(error).split())[-300:]})") from error
    try:
        yield
    finally:
        ray.shutdown()
