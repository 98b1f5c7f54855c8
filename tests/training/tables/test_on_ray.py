"""On Ray: what is left to do of a table runs as tasks of a local cluster, once each, and stops as it goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from every import EVERY
from small_tables import write_table
from test_work import CHILD, tasks_of

from kdstream.errors import UserError
from kdstream.training.tables.cells import expand
from kdstream.training.tables.on_ray import run_on_ray
from kdstream.training.tables.table import load_table

on_ray = pytest.mark.skipif(not EVERY, reason="a local Ray takes half a minute")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path, tmp_path / "digits")
    Path("child.py").write_text(CHILD)
    Path("seconds.txt").write_text("0")
    Path("fails.txt").write_text("")
    return tmp_path


def test_without_ray_one_line_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UserError, match=r'^--jobs ray needs Ray: pip install "kdstream\[ray\]", on a cluster whose'
    ) as e:
        run_on_ray([], print, print)
    assert "\n" not in str(e.value)


@on_ray
def test_tasks_run_on_a_local_ray_teachers_first_and_failures_are_told(here):
    pytest.importorskip("ray")
    tasks = tasks_of(expand(load_table("small.yaml")))
    told, ended = [], []

    def run():
        told.clear()
        ended.clear()
        command = [sys.executable, "child.py"]
        return run_on_ray(tasks, told.append, lambda task, well: ended.append((task.name, well)), ["--cpu"], command)

    assert run() == []
    assert len(ended) == len(tasks) == 7
    lines = Path("log.txt").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("begin") and "kd" in line and "only" not in line)
    assert lines.index(next(line for line in lines if line.startswith("end") and "only-teacher" in line)) < first
    assert len(list(Path("runs/cells/logs").iterdir())) == 7
    Path("fails.txt").write_text("only-teacher")
    (teacher, said), *others = run()
    assert (teacher.name, said.partition(" (")[0]) == ("teacher resnet14", "error: it does")
    assert [said for _, said in others] == ["its teacher resnet14 failed"] * 4
    assert not list(Path("runs/cells/logs").glob(".*.ray"))


STOPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
sys.path[:0] = [{tests!r}, {beside!r}]
from kdstream.training.tables.on_ray import run_on_ray
from test_work import tasks_of, expand, load_table
tasks = tasks_of(expand(load_table("small.yaml")))
try:
    run_on_ray(tasks[:1], print, print, [], [sys.executable, "waits.py"])
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@on_ray
def test_ctrl_c_asks_every_process_to_save_and_waits_for_it(here):
    from test_work import WAITS

    pytest.importorskip("ray")
    (here / "waits.py").write_text(WAITS)
    beside = Path(__file__).parent
    (here / "stopped.py").write_text(STOPPED.format(tests=str(beside.parent.parent), beside=str(beside)))
    process = subprocess.Popen([sys.executable, "stopped.py"], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not Path("here.txt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120)[0].endswith("stopped\n")
    assert Path("saved.txt").read_text() == "saved\n"
