"""Work: each training once, teachers first; what fails takes only its students along; a stop reaches all processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_tables import finish, write_table

from kdstream.errors import UserError
from kdstream.training.tables.cells import expand
from kdstream.training.tables.finished import Finished
from kdstream.training.tables.table import load_table
from kdstream.training.tables.work import hours, left_to_do, need_some, run_tasks

CHILD = """
import pathlib, sys, time
name = "-".join(sys.argv[2:]).replace("/", "_")
log = pathlib.Path("log.txt")
with log.open("a") as file:
    file.write(f"begin {name}\\n")
time.sleep(float(pathlib.Path("seconds.txt").read_text()))
with log.open("a") as file:
    file.write(f"end {name}\\n")
words = pathlib.Path("fails.txt").read_text().split()
if any(word in name for word in words):
    print("error: it does")
    sys.exit(2)
"""


@pytest.fixture
def cells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("child.py").write_text(CHILD)
    Path("seconds.txt").write_text("0")
    Path("fails.txt").write_text("")
    return expand(load_table(str(write_table(tmp_path, tmp_path / "digits"))))


def tasks_of(cells, seeds=2):
    return left_to_do(cells, seeds, ["workers=0"], Finished())


def launch(tasks, jobs=1, **settings):
    told, ended = [], []
    failed = run_tasks(
        tasks, jobs, told.append, lambda task, well: ended.append((task.name, well)), ["--cpu"],
        [sys.executable, "child.py"],
    )  # fmt: skip
    return told, ended, failed


def test_each_training_once_with_its_teacher_before_it(cells):
    tasks = tasks_of([*cells, *cells])
    assert [task.gives is not None for task in tasks] == [True] + [False] * 6
    assert [task.needs == tasks[0].gives for task in tasks[1:]] == [False] * 2 + [True] * 4
    assert [task.epochs for task in tasks] == [1] * 7
    start = ("train", str(cells[0].table.path), "cell=resnet14-resnet8:")
    assert tasks[0].launch[:2] == start[:2]
    assert tasks[0].launch[3:] == ("workers=0", "--only-teacher")
    assert tasks[-1].launch[2:] == ("cell=resnet14-resnet8:ckd", "workers=0", "seed=1")


def test_what_is_finished_is_left_out(cells):
    (teaching,) = {cell.teaching().fingerprint(): cell.teaching() for cell in cells if cell.of_teacher}.values()
    by_row = {cell.row: cell for cell in cells}
    finish(teaching, [50.0], folder="runs/cells/teachers/x")
    finish(by_row["kd"].with_seed(1), [50.0])
    assert [task.launch[2:] for task in tasks_of([by_row["teacher"], by_row["kd"]])] == [
        ("cell=resnet14-resnet8:kd", "workers=0", "seed=0")
    ]


def test_students_wait_for_their_teacher_and_several_run_at_a_time(cells):
    Path("seconds.txt").write_text("0.3")
    told, ended, failed = launch(tasks_of(cells), jobs=3)
    assert (failed, len(ended), all(well for _, well in ended)) == ([], 7, True)
    lines = Path("log.txt").read_text().splitlines()
    end_of_teacher = next(i for i, line in enumerate(lines) if line.startswith("end") and "only-teacher" in line)
    first_kd = next(i for i, line in enumerate(lines) if "kd" in line and "only-teacher" not in line)
    assert end_of_teacher < first_kd
    begun = [line.startswith("begin") for line in lines]
    assert max(2 * sum(begun[: i + 1]) - i - 1 for i in range(len(begun))) > 1
    assert told[0].startswith("[1/7] teacher resnet14")
    assert len(list(Path("runs/cells/logs").iterdir())) == 7


def test_a_failed_teacher_takes_its_students_along_and_nobody_else(cells):
    Path("fails.txt").write_text("only-teacher")
    _, ended, failed = launch(tasks_of(cells), jobs=2)
    (teacher, said), *others = failed
    assert (teacher.name, said.partition(" (")[0]) == ("teacher resnet14", "error: it does")
    assert [said for _, said in others] == ["its teacher resnet14 failed"] * 4
    assert sorted(well for _, well in ended) == [False, True, True]


def test_shards_that_are_missing_are_made_by_one_process(cells, tmp_path):
    text = Path("settings.yaml").read_text().replace("data: {", "data: {source: digits, ")
    Path("settings.yaml").write_text(text)
    Path("seconds.txt").write_text("0.2")
    again = expand(load_table("small.yaml"))
    _, ended, failed = launch([task for task in tasks_of(again) if task.needs is None], jobs=3)
    assert (len(ended), failed) == (3, [])
    words = [line.split()[0] for line in Path("log.txt").read_text().splitlines()]
    assert words == ["begin", "end"] * 3


def test_several_processes_take_the_gpus_in_turn(cells, monkeypatch):
    code = "import os; open('gpus.txt', 'a').write(os.environ['CUDA_VISIBLE_DEVICES'] + ' ')"
    Path("child.py").write_text(code)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    launch(tasks_of(cells)[:2], jobs=1)
    assert Path("gpus.txt").read_text().split() == ["3,5", "3,5"]
    Path("gpus.txt").unlink()
    launch([task for task in tasks_of(cells) if task.needs is None], jobs=3)
    assert sorted(Path("gpus.txt").read_text().split()) == ["3", "3", "5"]


STOPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
sys.path[:0] = [{tests!r}, {beside!r}]
from kdstream.training.tables import work
from test_work import tasks_of, expand, load_table
tasks = tasks_of(expand(load_table("small.yaml")))
try:
    work.run_tasks(tasks, 2, print, print, [], [sys.executable, "waits.py"])
except KeyboardInterrupt:
    print("stopped")
"""
WAITS = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path("saved.txt").open("a").write("saved\\n")
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
pathlib.Path("here.txt").open("a").write("here\\n")
time.sleep(60)
"""


def test_ctrl_c_asks_every_process_to_save_and_waits_for_it(cells, tmp_path):
    here = Path(__file__).parent
    (tmp_path / "waits.py").write_text(WAITS)
    script = tmp_path / "stopped.py"
    script.write_text(STOPPED.format(tests=str(here.parent.parent), beside=str(here)))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 120
    # The teacher, and a student that asks for none: two of them run.
    while not (Path("here.txt").exists() and Path("here.txt").read_text().count("here") == 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].endswith("stopped\n")
    assert Path("saved.txt").read_text() == "saved\nsaved\n"


def test_costs_are_of_the_pairs_that_are_known(cells):
    tasks = tasks_of(cells, seeds=1)
    pairs = {task.pair for task in tasks}
    assert len(pairs) == 4  # the teacher, the student alone, with it, with its coded form
    known = {task.pair: 1800.0 for task in tasks[:3]}
    assert hours(tasks, known) == (1.5, 1)


def test_nothing_to_train_is_said_with_the_reason(cells):
    need_some(cells, "small")
    quoted = [cell for cell in cells if cell.row == "search"]
    with pytest.raises(UserError, match=r"^table small: nothing of it is trained \(quoted\)$"):
        need_some(quoted, "small")
