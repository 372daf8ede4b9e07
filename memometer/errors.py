"""The base class of errors that a user can correct."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can correct.

    The message is one or two sentences: the problem, the value, the allowed values and the next step. The command line
    prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2
