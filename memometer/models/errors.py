"""How a failure is written down: one line, without a key in it."""

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
"""How the description of any failed call to a language model begins."""

FATAL = (LMAuthError, LMBillingError, LMNotConfiguredError, LMUnsupportedModelError)
"""What no other question could fare better with: a rejected key, an empty account, a model that is not there."""


GIVE_UP_AFTER = 8
"""If this many calls fail at the start and none succeeds, the run ends: the address or the model is wrong."""


def is_of_a_model(error: BaseException | None) -> bool:
    """Whether a failure goes back to a model: a call that failed, or a reply that holds no answer. Such a failure says
    nothing about the memory that asked. DSPy turns whatever a client raises into an LMError; a memory may have put an
    error of its own before that."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, (LMError, AdapterParseError)):
            return True
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def describe(error: BaseException) -> str:
    """`Type: first line of the message`, at most 300 characters that can be printed, secrets replaced."""
    said = str(error).encode("utf-8", "replace").decode()  # a server's half of a surrogate pair ends no run
    first = next((line for line in said.splitlines() if line.strip()), "")
    return redact(" ".join(f"{type(error).__name__}: {first}".split()))[:300]


def redact(text: str) -> str:
    """The text without any secret of this process's environment, authorisation header, or key-like word.

    Providers echo what they were sent, so a key can come back inside an error message.
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
    """The text without the values of this process's keys; all else, a model's answer say, stays as it is."""
    for name, value in os.environ.items():
        if re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name) and len(value) >= 8:
            text = text.replace(value, "[redacted]")
    return text
