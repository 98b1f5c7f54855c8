"""On Ray: the trainings of a table over a cluster, each a task with its CPUs and GPUs; Ray says where and when."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kdstream
from kdstream.errors import UserError
from kdstream.training.tables import cells as expanded
from kdstream.training.tables.work import Task, log_of, makes_data


def run_on_ray(
    tasks: Sequence[Task],
    tell: Callable[[str], None],
    advance: Callable[[Task, bool], None],
    options: Sequence[str] = (),
    command: Sequence[str] = (sys.executable, "-m", "kdstream"),
    logs: Path | None = None,
) -> list[tuple[Task, str]]:
    """As :func:`kdstream.training.tables.work.run_tasks`, on the cluster that ``RAY_ADDRESS`` names, or else here.

    Every task is an ordinary ``kdstream train`` in a process of its own, in this working directory, which all nodes
    must share; it takes one CPU and one for each reader process, and a GPU where the cluster has any.

    Raises:
        UserError: Ray is not installed, or no cluster answers.
        KeyboardInterrupt: after all processes have saved their state.
    """
    ray = _ray(tell)
    try:
        return _run(ray, tasks, tell, advance, [*command], [*options], logs or expanded.CELLS / "logs")
    finally:
        ray.shutdown()


def _ray(tell: Callable[[str], None]) -> Any:
    """Ray, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
    except ImportError:
        raise UserError(
            '--jobs ray needs Ray: pip install "kdstream[ray]", on a cluster whose nodes all see this folder; --jobs N '
            "trains here"
        ) from None
    address = os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {"address": address} if address else {"include_dashboard": False}
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)
    except Exception as error:  # Ray raises that class itself, and others
        said = " ".join(str(error).split())[:200]
        where = f"RAY_ADDRESS={address}" if address else "on this machine"
        raise UserError(f"--jobs ray: no Ray {where} ({said}): ray start --head starts a cluster") from None
    if ours is not None:
        signal.signal(signal.SIGTERM, ours)  # in whose place Ray puts its own
    nodes = [node for node in ray.nodes() if node["Alive"]]
    whole = ray.cluster_resources()
    cpus, gpus = (int(whole.get(kind, 0)) for kind in ("CPU", "GPU"))
    tell(f"Ray: {len(nodes)} node{'' if len(nodes) == 1 else 's'}, {cpus} CPUs, {gpus} GPUs")
    return ray


def _run(
    ray: Any,
    tasks: Sequence[Task],
    tell: Callable[[str], None],
    advance: Callable[[Task, bool], None],
    command: Sequence[str],
    options: Sequence[str],
    logs: Path,
) -> list[tuple[Task, str]]:
    here = os.getcwd()
    # A node that shares this folder sees it; when it is gone, what runs there saves its state and ends. (A task that is
    # cancelled counts as ended at once, and its process would be killed before it has saved anything.)
    mark = logs / f".{uuid.uuid4().hex}.ray"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()

    def train(words: list[str], log: str, mark: str, *before: tuple[bool, str]) -> tuple[bool, str]:
        """On a node: (whether it ended well, the last line that it said). ``before`` are what it has waited for."""
        import os
        import signal
        import socket
        import subprocess
        import sys
        import time

        lost = next((said for well, said in before if not well), None)
        if lost is not None:
            return False, lost
        if not os.path.exists(os.path.join(here, mark)):
            return (
                False,
                f"node {socket.gethostname()} does not see {here}: --jobs ray needs a folder that all nodes share",
            )
        if not os.path.exists(words[0]):  # Python lies elsewhere on this node
            words = [sys.executable, *words[1:]]
        os.makedirs(os.path.dirname(os.path.join(here, log)), exist_ok=True)
        with open(os.path.join(here, log), "wb") as file:
            process = subprocess.Popen(words, cwd=here, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            asked = False
            while (code := process.poll()) is None:
                time.sleep(0.2)
                if not asked and not os.path.exists(os.path.join(here, mark)):
                    asked = True
                    process.send_signal(signal.SIGTERM)
        with open(os.path.join(here, log), encoding="utf-8", errors="replace") as file:
            lines = [line for line in file.read().splitlines() if line.strip()]
        return code == 0, f"{lines[-1] if lines else 'it said nothing'} ({log})"

    home = str(Path(kdstream.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), home]))
    environment = {"env_vars": {"PYTHONPATH": path}}
    most = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
    gpus = 1 if ray.cluster_resources().get("GPU", 0) and "--cpu" not in options else 0
    remote = ray.remote(max_retries=0, num_gpus=gpus, runtime_env=environment)(train)
    refs: dict[Any, Task] = {}
    givers: dict[str, Any] = {}
    makers: dict[str, Any] = {}
    for task in tasks:  # teachers stand first
        path_of_data = task.recipe.data.path
        # One task makes the shards; the others wait for it, and make them where it could not.
        shards = [makers[path_of_data]] if path_of_data in makers else []
        teacher = [givers[task.needs]] if task.needs in givers else []
        before = [*teacher, *(_in_any_case(ray).remote(one) for one in shards)]
        cpus = min(1 + task.recipe.workers, most)
        ref = remote.options(num_cpus=cpus, name=task.name).remote(
            [*command, *task.launch, *options], str(log_of(task, logs)), str(mark), *before
        )
        refs[ref] = task
        if task.gives is not None:
            givers[task.gives] = ref
        if makes_data(task):
            makers[path_of_data] = ref
    return _wait(ray, refs, mark, tell, advance)


def _in_any_case(ray: Any) -> Any:
    """Waits for a task, and finds that it ended well."""

    def after(before: tuple[bool, str]) -> tuple[bool, str]:
        return True, ""

    return ray.remote(num_cpus=0)(after)


def _wait(
    ray: Any,
    refs: dict[Any, Task],
    mark: Path,
    tell: Callable[[str], None],
    advance: Callable[[Task, bool], None],
) -> list[tuple[Task, str]]:
    """Until all have ended; those that failed."""
    failed: list[tuple[Task, str]] = []
    teachers = {task.gives: task for task in refs.values() if task.gives is not None}
    bad: set[str] = set()
    left, count = list(refs), 0
    try:
        while left:
            ended, left = ray.wait(left, num_returns=1)
            for ref in ended:
                task = refs[ref]
                count += 1
                try:
                    well, said = ray.get(ref)
                except ray.exceptions.RayError as error:
                    well, said = False, " ".join(str(error).split())[:200]
                if task.needs in bad:
                    well, said = False, f"its {teachers[task.needs].name} failed"
                if not well:
                    failed.append((task, said))
                    bad |= {task.gives} if task.gives is not None else set()
                tell(f"[{count}/{len(refs)}] {task.name}: {'done' if well else 'failed'}")
                advance(task, well)
    except BaseException:
        mark.unlink(missing_ok=True)
        ray.wait(left, num_returns=len(left))
        raise
    finally:
        mark.unlink(missing_ok=True)
    return failed
