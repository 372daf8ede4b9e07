"""Count calls, tokens and seconds of language models, per thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.usage_tracker import UsageTracker


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


class _CallCounter(BaseCallback):
    calls = 0

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.calls += 1


_STARTED: ContextVar[_CallCounter | None] = ContextVar("started", default=None)
"""Counts the calls of models that count themselves, in the innermost block of `metered`."""


def count_call() -> None:
    """Count a call in the block of `metered` around it. A model with `counts_calls` does this at each call."""
    if (counter := _STARTED.get()) is not None:
        counter.calls += 1


@contextmanager
def metered(lm: Any = None) -> Iterator[Usage]:
    """Count the calls of this thread inside the block. The usage is complete when the block ends.

    Args:
        lm: the only model that the block calls; None for any. If it counts its own calls (`counts_calls`), the block
            needs no callbacks, which would run at each step of a DSPy program and cost more than the call itself.
    """
    usage, counter, started = Usage(), _CallCounter(), time.perf_counter()
    counts_itself = getattr(lm, "counts_calls", False)
    callbacks = {} if counts_itself else {"callbacks": [*dspy.settings.callbacks, counter]}
    tracker = UsageTracker()
    token = _STARTED.set(counter if counts_itself else None)
    with dspy.context(usage_tracker=tracker, **callbacks):
        try:
            yield usage
        finally:
            _STARTED.reset(token)
            usage.add(_reported(tracker, counter.calls))
            usage.seconds = round(time.perf_counter() - started, 4)


@contextmanager
def metered_answer(module: dspy.Module, lm: Any = None) -> Iterator[tuple[Usage, Usage]]:
    """Count all calls of this thread inside the block, and those inside one DSPy module.

    Args:
        module: the module.
        lm: the only model that the block calls, all from the module; None for any, from anywhere.
    """
    if getattr(lm, "counts_calls", False):
        answering = Usage()
        try:
            with metered(lm) as usage:
                yield usage, answering
        finally:
            answering.add(usage)
    else:
        with metered() as usage, metered_in(module) as answering:
            yield usage, answering


@contextmanager
def metered_in(module: dspy.Module) -> Iterator[Usage]:
    """Count the calls made inside one DSPy module. Use it inside a block of `metered`."""
    usage = Usage()
    meter = _ModuleMeter(module, dspy.settings.usage_tracker, usage)
    with dspy.context(callbacks=[*dspy.settings.callbacks, meter]):
        yield usage
    usage.seconds = round(usage.seconds, 4)


class _ModuleMeter(_CallCounter):
    def __init__(self, module: dspy.Module, tracker: Any, usage: Usage) -> None:
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
