"""What the commands have in common: a mistake on the command line is one line, as every other mistake."""

from __future__ import annotations

import argparse
from typing import NoReturn

from kdstream.errors import UserError


class CommandParser(argparse.ArgumentParser):
    """A parser that raises UserError where argparse would print how the command is used, and exit."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError with argparse's message, in one line."""
        raise UserError(f"{' '.join(message.split())}; see --help")
