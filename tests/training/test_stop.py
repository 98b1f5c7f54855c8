"""Signals: the first is a wish, the second acts at once; the end of a launcher is one, the end of a shell is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from kdstream.training import stop
from kdstream.training.stop import Interrupted, StopFlag, interruptible

HEARD = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def terminal():
    """As if these tests had one, though whoever started them may have made them ignore its end."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number):
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_BLOCK, [])  # a moment in which Python calls the handler


@pytest.mark.parametrize("second", HEARD)
@pytest.mark.parametrize("first", HEARD)
def test_the_second_signal_acts_at_once(first, second):
    flag = StopFlag()
    with flag.listening():
        send(first)
        assert flag.signal == first
        with pytest.raises(Interrupted) as interrupted:
            send(second)
        assert interrupted.value.signal == second
        assert isinstance(interrupted.value, KeyboardInterrupt)


@pytest.mark.parametrize("number", HEARD)
def test_outside_of_the_loop_the_first_acts_at_once(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as interrupted, interruptible():
        send(number)
    assert interrupted.value.signal == number
    assert signal.getsignal(number) is before


def test_who_is_to_outlive_its_terminal_does():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        flag = StopFlag()
        with flag.listening():
            send(signal.SIGHUP)
            assert flag.signal is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_signals_are_left_alone():
    flags = []

    def listen():
        with StopFlag().listening():
            flags.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert flags == [signal.getsignal(signal.SIGTERM)]


CHILD = """
import os, signal, sys, threading
from kdstream.training.stop import end_with_launcher
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
parent = os.getppid()
end_with_launcher(poll=0.02)
print("ready", flush=True)
sys.stdin.read()
while os.getppid() == parent:
    pass
print("asked" if asked.wait(float(sys.argv[1])) else "left alone", flush=True)
"""
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, *sys.argv[1:]]); time.sleep(600)"


@pytest.mark.parametrize(("name", "patience", "answer"), [("torchrun", 60, "asked"), ("bash", 1, "left alone")])
def test_the_end_of_a_launcher_is_a_sigterm_that_of_another_parent_is_none(tmp_path, name, patience, answer):
    (tmp_path / name).write_text(PARENT)
    (tmp_path / "child.py").write_text(CHILD)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / name, tmp_path / "child.py", str(patience)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.stdin.close()
    assert parent.stdout.readline() == f"{answer}\n"
    parent.wait()


@pytest.mark.parametrize(
    ("words", "launcher"),
    [
        (["python", "/venv/bin/accelerate", "launch", "train.py"], True),
        (["/usr/bin/python3", "-m", "accelerate.commands.launch", "train.py"], True),
        (["python", "/venv/bin/torchrun", "--nproc-per-node=2", "train.py"], True),
        (["python", "-m", "torch.distributed.run", "train.py"], True),
        (["-bash"], False),
        (["bash", "-c", "accelerate launch train.py; python train.py"], False),
        (["python", "-m", "pytest", "-n", "2"], False),
        (["tmux", "new", "-s", "accelerate-runs"], False),
        ([], False),
    ],
)
def test_launchers_are_known_by_their_command_lines(monkeypatch, words, launcher):
    import psutil

    class Process:
        def __init__(self, _):
            self.cmdline = lambda: words

    monkeypatch.setattr(psutil, "Process", Process)
    assert stop._is_launcher(1) == launcher
