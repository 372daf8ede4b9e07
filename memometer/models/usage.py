"""Count calls, tokens and seconds of language models, per thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback


@dataclass
class Usage:
    """The usage of some calls.

    Attributes:
        calls: number of calls; retries within a call are not counted.
        unreported: calls without a token count, because they failed or the server does not report one.
        prompt_tokens: as the provider reports them.
        completion_tokens: as the provider reports them.
        cached_tokens: prompt tokens that the provider read from its cache.
        reasoning_tokens: completion tokens that are thoughts, if the provider reports them.
        seconds: wall time.
    """

    calls: int = 0
    unreported: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    seconds: float = 0.0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    def add(self, more: Usage, *, times: int = 1) -> None:
        """Add another usage, `times` times."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + times * getattr(more, field.name))


@contextmanager
def metered() -> Iterator[Usage]:
    """Count the calls of this thread inside the block. The usage is complete when the block ends."""
    usage, counter, started = Usage(), _CallCounter(), time.perf_counter()
    with dspy.track_usage() as tracker, dspy.context(callbacks=[*dspy.settings.callbacks, counter]):
        try:
            yield usage
        finally:
            usage.add(_reported(tracker, counter.calls))
            usage.seconds = round(time.perf_counter() - started, 4)


@contextmanager
def metered_in(module: dspy.Module) -> Iterator[Usage]:
    """Count the calls made inside one DSPy module. Use it inside a block of `metered`."""
    usage = Usage()
    meter = _ModuleMeter(module, dspy.settings.usage_tracker, usage)
    with dspy.context(callbacks=[*dspy.settings.callbacks, meter]):
        yield usage
    usage.seconds = round(usage.seconds, 4)


class _CallCounter(BaseCallback):
    def __init__(self) -> None:
        self.calls = 0

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.calls += 1


class _ModuleMeter(_CallCounter):
    def __init__(self, module: dspy.Module, tracker: Any, usage: Usage) -> None:
        super().__init__()
        self.module, self.tracker, self.usage = module, tracker, usage
        self.open: dict[str, Usage] = {}

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if instance is self.module:
            self.open[call_id] = self._now()

    def on_module_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        if before := self.open.pop(call_id, None):
            self.usage.add(self._now())
            self.usage.add(before, times=-1)

    def _now(self) -> Usage:
        now = _reported(self.tracker, self.calls)
        now.seconds = time.perf_counter()
        return now


def _reported(tracker: Any, calls: int) -> Usage:
    """Return the usage that DSPy's tracker recorded for a number of calls."""
    entries = [entry for of_model in tracker.usage_data.values() for entry in of_model]
    entries = [entry for entry in entries if entry.get("prompt_tokens")]  # zero is no report: every prompt has tokens
    return Usage(
        calls=calls,
        unreported=calls - len(entries),
        prompt_tokens=sum(entry.get("prompt_tokens") or 0 for entry in entries),
        completion_tokens=sum(entry.get("completion_tokens") or 0 for entry in entries),
        cached_tokens=_details(entries, "prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=_details(entries, "completion_tokens_details", "reasoning_tokens"),
    )


def _details(entries: list[dict[str, Any]], group: str, name: str) -> int:
    return sum((entry.get(group) or {}).get(name) or 0 for entry in entries)
