"""Describe failures in one line without secrets, and distinguish failures of a model from failures of a memory."""

from __future__ import annotations

import os
import re
import threading

from dspy.utils.exceptions import (
    AdapterParseError,
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMError,
    LMNotConfiguredError,
    LMUnsupportedModelError,
)

TOO_LONG = ContextWindowExceededError.__name__
"""Prefix of the description of a call whose prompt did not fit."""

MAX_DESCRIPTION = 600

FATAL = (LMAuthError, LMBillingError, LMNotConfiguredError, LMUnsupportedModelError)
"""Errors that every further call would repeat: a rejected key, an empty account, an unknown model."""


GIVE_UP_AFTER = 8
"""If this many calls fail at the start and none succeeds, the run ends: the address or the model is wrong."""

GIVE_UP_IN_A_ROW = 16
"""If this many calls fail one after the other later, the run ends: the server has stopped."""


class EarlyStop:
    """Counts failed calls and tells when further ones are pointless. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_answer = False
        self._in_a_row = 0

    def add(self, failure: str, *, of_prompt: bool = False) -> str:
        """Count a finished call.

        Args:
            failure: the description of its error; empty for an answer.
            of_prompt: True if the prompt was too long. Later in a run, that says nothing about other prompts.

        Returns:
            The reason to end the run, or an empty text.
        """
        with self._lock:
            if not failure:
                self._has_answer, self._in_a_row = True, 0
                return ""
            if self._has_answer and of_prompt:
                return ""
            self._in_a_row += 1
            if self._in_a_row < (GIVE_UP_IN_A_ROW if self._has_answer else GIVE_UP_AFTER):
                return ""
            calls = f"{self._in_a_row} calls in a row" if self._has_answer else f"the first {self._in_a_row} calls"
            return f"{calls} failed, the last with {failure}"


def is_of_a_model(error: BaseException | None) -> bool:
    """Return True if a model caused the failure: a failed call, or a reply without an answer.

    Such a failure says nothing about the memory. DSPy raises every client error as an LMError; the memory may have
    raised its own error from that.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, (LMError, AdapterParseError)):
            return True
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def describe(error: BaseException) -> str:
    """Return `Type: first line of the message`, at most MAX_DESCRIPTION printable characters, without secrets."""
    message = str(error).encode("utf-8", "replace").decode()  # a server may send an unpaired surrogate
    first = next((line for line in message.splitlines() if line.strip()), "")
    printable = "".join(char if char.isprintable() else " " for char in first)
    return redact(" ".join(f"{type(error).__name__}: {printable}".split()))[:MAX_DESCRIPTION].rstrip(" .")


def redact(text: str) -> str:
    """Remove secrets of the environment, authorisation headers and words that look like keys from a text.

    Providers echo their input, so an error message can contain a key.
    """
    text = without_keys(text)
    text = re.sub(
        r"(?i)\b(authorization|x-api-key|api[-_ ]?key|(?:access|auth|api)[-_ ]?token|secret|password|(?<=[?&])key)"
        r"(\\?['\"]?\s*[:=]\s*\\?['\"]?)(bearer\s+|basic\s+)?[^\s'\",;}&\\]+",
        r"\1\2[redacted]",
        text,
    )
    text = re.sub(r"(?i)\bbearer\s+[^\s'\",;}]+", "Bearer [redacted]", text)
    text = re.sub(
        r"\b((sk|tgp|hf|rpa|key|gsk|xai|nvapi|r8|ghp|gho|github_pat|pplx|csk|fw|pk|dop|glpat)[-_][A-Za-z0-9_\-]{8,}"
        r"|AIza[\w-]{20,}|A[KS]IA[A-Z0-9]{12,}|eyJ[\w-]{8,}\.[\w-]+(\.[\w-]*)?)",
        "[redacted]",
        text,
    )
    return re.sub(r"(https?://)[^/\s@]+@", r"\1[redacted]@", text)


def without_keys(text: str) -> str:
    """Remove the values of this process's keys from a text and leave the rest unchanged, such as a model's answer."""
    for name, value in os.environ.items():
        if len(value) >= 8 and value in text and re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name):
            text = text.replace(value, "[redacted]")
    return text
