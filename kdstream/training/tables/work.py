"""Work: what is left to train of some cells, by how many processes at a time, and what it costs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import kdstream
from kdstream.errors import UserError
from kdstream.recipe import Recipe
from kdstream.stream.language import parse_calls
from kdstream.training.job import each_teacher
from kdstream.training.tables import cells as expanded
from kdstream.training.tables.cells import Cell
from kdstream.training.tables.finished import Finished

Pair = tuple[str, str, str, bool]
"""Data, teacher, student, and whether the teacher sees coded images."""


def pair_of(recipe: Recipe) -> Pair:
    """What decides, but for the loss, how long an epoch of a training takes."""
    teacher = "" if recipe.teacher is None else str(recipe.teacher.model or recipe.teacher.weights)
    coded = bool(teacher) and any(call.name == "coded" for call in parse_calls(recipe.stream))
    return (recipe.data.path, teacher, str(recipe.student.model or recipe.student.weights), coded)


@dataclass(frozen=True)
class Task:
    """A training that is left to do.

    Attributes:
        name: for people, and of its log.
        recipe: of it; a teacher's is that of the teacher alone.
        launch: what ``kdstream train`` is given.
        needs: fingerprint of the teacher that must be trained before; None = nothing.
        gives: fingerprint of the teacher that it trains; None for a student.
        pair: what decides how long an epoch takes, see :func:`pair_of`.
        cell: it was the first that asked for it; None where no table did.
    """

    name: str
    recipe: Recipe
    launch: tuple[str, ...]
    needs: str | None
    gives: str | None
    pair: Pair
    cell: Cell | None = None

    @property
    def epochs(self) -> int:
        """How many it has, without phases before the main one; 0 where a trained teacher is only evaluated."""
        given = self.cell is not None and self.cell.of_teacher and self.gives is None
        trainings = 1 if self.gives is None else len(each_teacher(self.recipe))
        return 0 if given else self.recipe.epochs * trainings


def left_to_do(cells: Sequence[Cell], seeds: int, overrides: Sequence[str], finished: Finished) -> list[Task]:
    """The trainings that are not finished, each once, teachers first.

    Args:
        cells: of any tables.
        seeds: how many of each cell.
        overrides: with which the cells were expanded.
        finished: says what is done.
    """
    teachers: dict[str, Task] = {}
    students: dict[tuple[str, int], Task] = {}
    for cell in cells:
        if cell.recipe is None:
            continue
        teaching, done = cell.teaching(), finished.of(cell)
        start = ("train", cell.table.called, f"cell={cell.key}", *overrides)
        needs = None
        wanted = range(cell.recipe.seed, cell.recipe.seed + seeds)
        lacking = [seed for seed in wanted if seed not in done]
        if (
            teaching is not None
            and not cell.given
            and finished.teacher(teaching) is None
            and (cell.of_teacher or lacking)
        ):
            needs = teaching.fingerprint()
            name = f"teacher {teaching.student.model}"
            task = Task(name, teaching, (*start, "--only-teacher"), None, needs, pair_of(teaching), cell)
            teachers.setdefault(needs, task)
        if cell.of_teacher:
            if cell.given and not done:
                name = f"evaluation of {cell.network()}"
                task = Task(name, cell.recipe, start, None, None, pair_of(cell.recipe), cell)
                students.setdefault((cell.recipe.fingerprint(), -1), task)
            continue
        for seed in lacking:
            recipe = cell.with_seed(seed)
            task = Task(recipe.name, recipe, (*start, f"seed={seed}"), needs, None, pair_of(recipe), cell)
            students.setdefault((recipe.fingerprint(), seed), task)
    return [*teachers.values(), *students.values()]


def run_tasks(
    tasks: Sequence[Task],
    jobs: int,
    tell: Callable[[str], None],
    advance: Callable[[Task, bool], None],
    options: Sequence[str] = (),
    command: Sequence[str] = (sys.executable, "-m", "kdstream"),
    logs: Path | None = None,
) -> list[tuple[Task, str]]:
    """Run them, each in a process of its own: an ordinary ``kdstream train``, which continues what was interrupted.

    One at a time it shows what it does where the caller does; several write to ``logs``. On several GPUs,
    each process gets one of them in turn; on the CPU they share the cores.

    Args:
        tasks: what to do; a student waits for its teacher.
        jobs: so many at a time.
        tell: is told what begins.
        advance: is told what ended, and whether well.
        options: for every ``kdstream train``.
        command: what ``kdstream`` is.
        logs: folder of what they say; None = ``runs/cells/logs``.

    Returns:
        The tasks that failed, with the last line that they said (empty where it was shown).

    Raises:
        KeyboardInterrupt: after all processes have saved their state; a second one kills them.
    """
    logs = logs or expanded.CELLS / "logs"
    waiting, running, failed = list(tasks), dict[int, tuple[Task, subprocess.Popen[bytes], Path | None]](), []
    begun = 0
    try:
        while waiting or running:
            for slot in (slot for slot in range(jobs) if slot not in running):
                coming = {task.gives for task in waiting} | {task.gives for task, _, _ in running.values()}
                made = {task.recipe.data.path for task, _, _ in running.values() if makes_data(task)}
                ready = (
                    task
                    for task in waiting
                    if (task.needs is None or task.needs not in coming) and task.recipe.data.path not in made
                )
                if (task := next(ready, None)) is None:
                    break
                waiting.remove(task)
                begun += 1
                tell(f"[{begun}/{len(tasks)}] {task.name}")
                running[slot] = (task, *_start(task, slot, jobs, [*command, *task.launch, *options], logs))
            for slot, (task, process, log) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                well = process.returncode == 0
                if not well:
                    failed.append((task, _last_line(log)))
                    if task.gives is not None:
                        lost = [one for one in waiting if one.needs == task.gives]
                        waiting = [one for one in waiting if one.needs != task.gives]
                        failed += [(one, f"its {task.name} failed") for one in lost]
                advance(task, well)
            time.sleep(0.05)
    except BaseException:
        _stop([process for _, process, _ in running.values()])
        raise
    return failed


def _start(
    task: Task, slot: int, jobs: int, command: Sequence[str], logs: Path
) -> tuple[subprocess.Popen[bytes], Path | None]:
    environment = dict(os.environ)
    home = str(Path(kdstream.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), home]))
    if jobs == 1:
        return subprocess.Popen(command, env=environment, start_new_session=True), None
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // jobs, 1)))
    if len(gpus := _gpus(environment)) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    log = log_of(task, logs)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=file, stderr=subprocess.STDOUT
        )
    return process, log


def log_of(task: Task, logs: Path) -> Path:
    """Where it writes what it says, in the folder of such files."""
    name = re.sub(r"[^\w.+-]+", "_", task.name)
    return logs / f"{name}-{task.recipe.fingerprint()[:8]}.log"


def _gpus(environment: Mapping[str, str]) -> list[str]:
    """The names of the GPUs that may be used."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def makes_data(task: Task) -> bool:
    """Whether its process has to make the shards, which is for one alone."""
    data = task.recipe.data
    return data.source is not None and not (Path(data.path) / "dataset.json").exists()


def _last_line(log: Path | None) -> str:
    if log is None:
        return ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1] if lines else 'it said nothing'} ({log})"


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask all to save and end; a second Ctrl-C does not wait for it."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
        raise


# --- cost


def hours(tasks: Sequence[Task], seconds_per_epoch: Mapping[Pair, float]) -> tuple[float, int]:
    """How long the tasks take one after the other, as far as it is known of their pairs of networks, and how many
    epochs that leaves out."""
    known = sum(task.epochs * seconds_per_epoch[task.pair] for task in tasks if task.pair in seconds_per_epoch)
    return known / 3600, sum(task.epochs for task in tasks if task.pair not in seconds_per_epoch)


def need_some(cells: Sequence[Cell], table: str) -> None:
    """That there is something to train at all.

    Raises:
        UserError: there is not; why not.
    """
    if not any(cell.recipe is not None for cell in cells):
        reasons = ", ".join(sorted({cell.why_not for cell in cells if cell.why_not})) or "no such cell"
        raise UserError(f"table {table}: nothing of it is trained ({reasons})")
