"""The base class of errors that a user can correct, and how text is printed safely."""

from __future__ import annotations

import re


class UserError(Exception):
    """An error that the user can correct.

    The message is one or two sentences: the problem, the value, the allowed values and the next step. The command line
    prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


def printable(text: str) -> str:
    """Return a text with control characters as escapes, because a terminal would obey them."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda m: f"\\u{ord(m[0]):04x}", text)
