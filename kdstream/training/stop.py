"""Stopping politely: a signal is a wish that the loop grants after the step in hand."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


class Stopped(Exception):
    """A signal asked to stop; the checkpoint is written."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number


@dataclass
class StopFlag:
    """Which signal asked the training to stop; looked at after every step."""

    signal: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While this is open, SIGTERM and Ctrl-C set the flag; a second one acts at once."""

        def ask(number: int, _: Any) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = number

        # Python allows handlers in the main thread only; elsewhere (a notebook's worker, say) signals act as ever.
        in_main = threading.current_thread() is threading.main_thread()
        before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)} if in_main else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
