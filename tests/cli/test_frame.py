"""The frame of every command: exit codes, one line for a mistake, signals given back, and output that fails."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from kdstream.cli.frame import CommandParser, find_own_modules, imported, quiet_imports, run_command
from kdstream.errors import UserError


def parser() -> CommandParser:
    made = CommandParser(prog="kdstream nothing")
    made.add_argument("--count", type=int)
    return made


def ended_by(number: int):
    def run(options):
        os.kill(os.getpid(), number)
        threading.Event().wait(5)  # the signal is heard at the next instruction
        raise AssertionError("it went on")

    return run


def mistaken(options):
    raise UserError("a.tar: no such file")


@pytest.mark.parametrize(
    ("run", "arguments", "code", "line"),
    [
        (lambda options: print("done", options.count), ["--count", "3"], 0, ""),
        (mistaken, [], 2, "error: a.tar: no such file\n"),
        (mistaken, ["--count", "x\ny"], 2, "error: argument --count: invalid int value: 'x\\ny'; see --help\n"),
        (ended_by(signal.SIGINT), [], 130, "interrupted: nothing written\n"),
        (ended_by(signal.SIGTERM), [], 143, "terminated: nothing written\n"),
    ],
)
def test_an_end_has_its_code_and_line_and_gives_signals_back(run, arguments, code, line, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stdout = sys.stdout
    assert run_command(parser, run, arguments, "nothing written") == code
    assert capsys.readouterr() == ("done 3\n" if code == 0 else "", line)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert sys.stdout is stdout


def test_in_another_thread_no_signal_is_taken(capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run_command(parser, mistaken, [])))
    thread.start()
    thread.join()
    assert codes == [2]
    assert capsys.readouterr().err == "error: a.tar: no such file\n"


def test_output_that_cannot_be_written_is_no_other_disks_fault(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_command(parser, lambda options: print("x" * 100_000), []) == 2
    assert capsys.readouterr().err == "error: cannot write the output: No space left on device\n"


def test_imports_end_at_once_and_signals_that_others_took_stay():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a job in the background
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        quiet_imports()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        imported()
        assert [signal.getsignal(number) for number in before] == [signal.SIG_IGN, signal.SIG_DFL]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_own_modules_are_found_after_those_installed_and_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/installed"])
    find_own_modules()
    find_own_modules()
    assert sys.path == ["/installed", str(tmp_path)]
