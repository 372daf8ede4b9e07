"""Describe failures in one line without secrets, and distinguish failures of a model from failures of a memory."""

from __future__ import annotations

import os
import re

from dspy.utils.exceptions import (
    AdapterParseError,
    LMAuthError,
    LMBillingError,
    LMError,
    LMNotConfiguredError,
    LMUnsupportedModelError,
)

LM_ERROR = "LM"
"""Prefix of the description of a failed call to a language model."""

FATAL = (LMAuthError, LMBillingError, LMNotConfiguredError, LMUnsupportedModelError)
"""Errors that every further call would repeat: a rejected key, an empty account, an unknown model."""


GIVE_UP_AFTER = 8
"""If this many calls fail at the start and none succeeds, the run ends: the address or the model is wrong."""


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
    """Return `Type: first line of the message`, at most 300 printable characters, with secrets replaced."""
    message = str(error).encode("utf-8", "replace").decode()  # a server may send an unpaired surrogate
    first = next((line for line in message.splitlines() if line.strip()), "")
    return redact(" ".join(f"{type(error).__name__}: {first}".split()))[:300]


def redact(text: str) -> str:
    """Remove secrets of the environment, authorisation headers and words that look like keys from a text.

    Providers echo their input, so an error message can contain a key.
    """
    text = without_keys(text)
    text = re.sub(
        r"(?i)\b(authorization|x-api-key|api[-_]key)(['\"]?\s*[:=]\s*['\"]?)(bearer\s+)?[^\s'\",;}]+",
        r"\1\2[redacted]",
        text,
    )
    text = re.sub(r"(?i)\bbearer\s+[^\s'\",;}]+", "Bearer [redacted]", text)
    text = re.sub(r"\b(sk|tgp|hf|rpa|key)[-_][A-Za-z0-9_\-]{8,}", "[redacted]", text)
    return re.sub(r"(https?://)[^/\s@]+@", r"\1[redacted]@", text)


def without_keys(text: str) -> str:
    """Remove the values of this process's keys from a text and leave the rest unchanged, such as a model's answer."""
    for name, value in os.environ.items():
        if re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name) and len(value) >= 8:
            text = text.replace(value, "[redacted]")
    return text
