"""Stopping politely: a signal is a wish that the loop grants after the step in hand; a launcher's end is a signal."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

_HANGUP = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
_LAUNCHERS = ("accelerate", "accelerate-launch", "torchrun", "torchrun.py")
_LAUNCHING = ("accelerate.commands", "accelerate/commands", "torch.distributed", "torch/distributed")


class Stopped(Exception):
    """A signal asked to stop; the checkpoint is written."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number


class Interrupted(KeyboardInterrupt):
    """A signal ends the work at once: before the training has begun, or because it is the second one."""

    def __init__(self, signal_number: int):
        super().__init__()
        self.signal = signal_number


@dataclass
class StopFlag:
    """Which signal asked the training to stop; looked at after every step."""

    signal: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While this is open, SIGTERM, Ctrl-C and a closed terminal set the flag; a second one acts at once."""

        def ask(number: int, _: Any) -> None:
            if self.signal is not None:
                raise Interrupted(number)
            self.signal = number

        with handled(ask):
            yield


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While this is open, the same signals raise :class:`Interrupted`, so that what is half-done is cleared away."""

    def interrupt(number: int, _: Any) -> None:
        raise Interrupted(number)

    with handled(interrupt):
        yield


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """``handler`` gets Ctrl-C, SIGTERM and, unless it is ignored (``nohup``), the hang-up of a terminal."""
    # Python allows handlers in the main thread only; elsewhere (a notebook's worker, say) signals act as ever.
    in_main = threading.current_thread() is threading.main_thread()
    heard = [signal.SIGINT, signal.SIGTERM]
    heard += [number for number in _HANGUP if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard} if in_main else {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def end_with_launcher(poll: float = 0.5) -> None:
    """Send this process SIGTERM once the launcher that started it is gone.

    ``accelerate launch`` passes no signal on: without this, its training would go on unseen, and in the way of the same
    command. Processes that a shell started, or anything else, are left alone: ``nohup`` is to work.

    Args:
        poll: seconds between looks.
    """
    parent = os.getppid()
    if not _is_launcher(parent):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end with launcher", daemon=True).start()


def single_launcher() -> int | None:
    """The process number of the ``accelerate launch`` that started this process alone; None: there is none."""
    parent = os.getppid()
    alone = "RANK" not in os.environ and any("accelerate" in word for word in _command(parent)[:6])
    return parent if alone and _is_launcher(parent) else None


def _command(process: int) -> list[str]:
    try:
        import psutil  # comes with Accelerate

        return psutil.Process(process).cmdline()
    except Exception:  # gone already, somebody else's, no psutil
        return []


def _is_launcher(process: int) -> bool:
    """Whether a process is Accelerate's or torch's launcher, by its command line."""
    words = _command(process)
    return any(PurePath(word).name in _LAUNCHERS or any(path in word for path in _LAUNCHING) for word in words[:6])
