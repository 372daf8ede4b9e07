"""What calls to language models cost, counted per thread: calls, prompt tokens, completion tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback


@dataclass
class Usage:
    """`prompt_tokens` and `completion_tokens` as the providers report them. A call without a report (a failed one, or
    a server that counts nothing) is in `unreported`, never a zero in disguise. Retries within a call are not seen."""

    calls: int = 0
    unreported: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _CallCounter(BaseCallback):
    def __init__(self) -> None:
        self.calls = 0

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.calls += 1


@contextmanager
def metered() -> Iterator[Usage]:
    """Counts the calls made by this thread inside the block; the figures are complete when the block ends."""
    usage, counter = Usage(), _CallCounter()
    callbacks = [*dspy.settings.callbacks, counter]
    with dspy.track_usage() as tracker, dspy.context(callbacks=callbacks):
        try:
            yield usage
        finally:
            entries = [entry for calls in tracker.usage_data.values() for entry in calls]
            usage.calls = counter.calls
            usage.unreported = counter.calls - len(entries)
            usage.prompt_tokens = sum(entry.get("prompt_tokens") or 0 for entry in entries)
            usage.completion_tokens = sum(entry.get("completion_tokens") or 0 for entry in entries)
