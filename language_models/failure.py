"""How a failure is written down: one line, without a key in it."""

from __future__ import annotations

import os
import re

from dspy.utils.exceptions import LMAuthError, LMBillingError, LMNotConfiguredError, LMUnsupportedModelError

LM_ERROR = "LM"
"""How the description of any failed call to a language model begins."""

FATAL = (LMAuthError, LMBillingError, LMNotConfiguredError, LMUnsupportedModelError)
"""What no other question could fare better with: a rejected key, an empty account, a model that is not there."""


def describe(error: BaseException) -> str:
    """`Type: first line of the message`, at most 300 characters, secrets replaced."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
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
