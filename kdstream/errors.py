"""The exceptions for what a user can mend: their message is the line that they read."""


class UserError(ValueError):
    """Something in the user's input is wrong.

    The message is one line: what is wrong, where, and what to do. Commands print it without a traceback and exit
    with code 2; in Python it is an ordinary exception.
    """


class DiskError(UserError, OSError):
    """A disk that is full, fails or may not be written to; ``errno`` says which.

    As every UserError it is one line that says what to do; who expects an OSError where something is written gets one.
    """

    def __init__(self, message: str, number: int | None = None):
        super().__init__(message)
        self.errno = number
