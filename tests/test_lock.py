"""One at a time in a folder, for as long as a process lives; and no wait for ever where there are no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from kdstream.lock import LOCK, alone, held

HOLDER = """
import sys, time
from pathlib import Path
from kdstream.lock import alone
with alone(Path(sys.argv[1]), lambda: print("waits", flush=True), print):
    print("has it", flush=True)
    sys.stdin.read()
"""


def never(*_):
    raise AssertionError("nobody else has it, and there are locks")


def hold(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "has it\n"
    return process


def test_the_folder_is_made_and_left_as_it_was(tmp_path):
    with alone(tmp_path / "a" / "b", never, never):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert list((tmp_path / "a" / "b").iterdir()) == []
    with alone(tmp_path / "a" / "b", never, never):
        pass


def test_an_error_inside_frees_it(tmp_path):
    with pytest.raises(RuntimeError), alone(tmp_path, never, never):
        raise RuntimeError
    with alone(tmp_path, never, never):
        pass


def test_a_killed_process_frees_it_and_what_it_leaves_is_in_nobodys_way(tmp_path):
    process = hold(tmp_path)
    process.kill()
    process.wait()
    assert (tmp_path / LOCK).exists()
    with alone(tmp_path, never, never):
        pass
    assert not (tmp_path / LOCK).exists()


def test_who_comes_second_says_so_and_waits(tmp_path):
    process, waited = hold(tmp_path), []

    def waiting():
        waited.append(process.poll())
        process.stdin.close()

    with alone(tmp_path, waiting, never):
        assert process.wait(60) == 0
    assert waited == [None]


@pytest.mark.parametrize("remove", ["file", "folder"])
def test_a_lock_that_was_removed_meanwhile_is_not_taken_for_one(tmp_path, remove):
    """Of two that waited for a file which its holder removed, and one that came later, only one may go on."""
    place, inside, most, order = tmp_path / "place", [], [], threading.Lock()
    process, waiting = hold(place), threading.Barrier(3)

    def enter():
        with alone(place, lambda: waiting.wait(60) if not most else None, never):
            with order:
                inside.append(1)
                most.append(len(inside))
            threading.Event().wait(0.05)
            with order:
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiting.wait(60)
    (place / LOCK).unlink() if remove == "file" else shutil.rmtree(place)
    late = threading.Thread(target=enter)
    late.start()
    process.stdin.close()
    for thread in (*threads, late):
        thread.join(60)
    assert most == [1, 1, 1]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_without_locks_it_goes_on_and_says_so(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = []
    for _ in range(2):  # the first leaves nothing behind that the second waits for
        with alone(tmp_path, never, said.append):
            pass
    assert said == [os.strerror(number)] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_the_wait(tmp_path):
    process = hold(tmp_path)
    second = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert second.stdout.readline() == "waits\n"
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == -signal.SIGTERM
    process.kill()
    process.wait()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), alone(tmp_path / "file" / "below", never, never):
        pass


def test_whether_somebody_holds_it_can_be_asked(tmp_path):
    assert not held(tmp_path)
    with alone(tmp_path, never, never):
        assert held(tmp_path)
    (tmp_path / LOCK).touch()  # of a process that was killed
    assert not held(tmp_path)
    assert (tmp_path / LOCK).exists()
