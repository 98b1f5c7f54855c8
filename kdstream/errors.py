"""The one exception for mistakes that a user can mend: its message is the line that they read."""


class UserError(ValueError):
    """Something in the user's input is wrong.

    The message is one line: what is wrong, where, and what to do. Commands print it without a traceback and exit
    with code 2; in Python it is an ordinary exception.
    """
