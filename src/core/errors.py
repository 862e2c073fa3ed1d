"""The one error that this project raises for a person to read."""


class DigitsError(Exception):
    """Something the user can mend.

    The message says what is wrong, where (file, row, column or key) and what to do; a command
    prints it and exits with code 1, without a traceback.
    """
