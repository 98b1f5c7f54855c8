"""The frame of every command: its command line, one line for a mistake, Ctrl-C and SIGTERM, and the exit code."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from kdstream.errors import UserError
from kdstream.terminal import say_error


class CommandParser(argparse.ArgumentParser):
    """A parser that raises UserError where argparse would print how the command is used, and exit."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError with argparse's message, in one line."""
        raise UserError(f"{' '.join(message.split())}; see --help")


class MixedParser(CommandParser):
    """One that lets ``key=value`` and options stand in any order."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As :meth:`argparse.ArgumentParser.parse_intermixed_args`."""
        return self.parse_intermixed_args(args, namespace)


def command_parser(
    verb: str, about: str | None, examples: str, kind: type[CommandParser] = CommandParser
) -> CommandParser:
    """The parser of a verb.

    Args:
        verb: its name.
        about: the docstring of its module, whose first line says after a colon what it does.
        examples: shown below the options, as they are.
        kind: of parser.
    """
    return kind(
        prog=f"kdstream {verb}",
        description=(about or "").splitlines()[0].partition(": ")[2],
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def run_command(
    parser: Callable[[], CommandParser],
    run: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
    kept: str = "",
) -> int:
    """Parse, run, and say in one line what went wrong.

    Args:
        parser: makes that of the command line.
        run: does what the parsed options say; libraries that take long to load are imported in it, not before.
        arguments: None = those of the process.
        kept: what becomes of work that is interrupted, for the line that Ctrl-C is answered with.

    Returns:
        The exit code: 0; 2 for bad input, or output that cannot be written; 130 after Ctrl-C; 143 after SIGTERM.
    """
    try:
        with _terminable(), contextlib.redirect_stdout(_Output(sys.stdout)) as output:
            run(parser().parse_args(arguments))
            output.flush()
    except UserError as error:
        say_error(f"error: {error}")
        return 2
    except KeyboardInterrupt as stopped:
        terminated = isinstance(stopped, Terminated)
        say_error(("terminated" if terminated else "interrupted") + (f": {kept}" if kept else ""))
        return 143 if terminated else 130
    return 0


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """While this is open, SIGTERM raises :class:`Terminated`, and Ctrl-C is heard in a background job as well."""

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread only
        yield
        return
    handlers: dict[int, Any] = {signal.SIGTERM: terminate, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Output(io.TextIOBase):
    """Standard output that says so when it cannot be written, so that no other disk is blamed."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]  # the base class has a plain attribute
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except OSError as error:
            with contextlib.suppress(OSError):  # what is still to be written would fail again at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise UserError(f"cannot write the output: {error.strerror or error}") from error


def find_own_modules() -> None:
    """Let dotted paths lead to modules in the working folder, as they do under ``python -m``; installed ones first."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


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
