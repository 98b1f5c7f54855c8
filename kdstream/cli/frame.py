"""What the commands have in common: a mistake is one line, as every other mistake, and Ctrl-C needs no explanation."""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any, NoReturn

from kdstream.errors import UserError


class CommandParser(argparse.ArgumentParser):
    """A parser that raises UserError where argparse would print how the command is used, and exit."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError with argparse's message, in one line."""
        raise UserError(f"{' '.join(message.split())}; see --help")


def _leave(number: int, _: Any) -> NoReturn:
    os._exit(128 + number)


def quiet_imports() -> None:
    """Until :func:`imported`, Ctrl-C and SIGTERM end the process at once and in silence, with exit code 130 or 143.

    For the seconds in which modules are imported: nothing has begun that could be lost, and a traceback through other
    people's packages says nothing.
    """
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:  # a job in the background may have to ignore Ctrl-C
            signal.signal(number, _leave)


def imported() -> None:
    """Ctrl-C is KeyboardInterrupt again, and SIGTERM ends the process."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is _leave:
            signal.signal(number, usual)
