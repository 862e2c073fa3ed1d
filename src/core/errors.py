"""The exception for errors that the user can fix."""


class DigitsError(Exception):
    """An error that the user can fix.

    The message states where (file and line, or key), what was expected, what was found and how
    to fix it. A command prints it without a traceback and exits with code 1.
    """
