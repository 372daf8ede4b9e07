"""The deadline of the current request, which searches and scans of a store respect."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from memometer.store.episode import StoreError

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


class DeadlineExceeded(StoreError):
    """The time for the request is over."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let store operations in this block, and in threads that copy its context, end after this time."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def remaining(default: float) -> float:
    """Return the remaining seconds, at least 0 and at most `default`; `default` if there is no deadline."""
    end = _deadline.get()
    return default if end is None else min(default, max(0.0, end - time.monotonic()))


def is_set() -> bool:
    """Return True if there is a deadline."""
    return _deadline.get() is not None


def passed() -> bool:
    """Return True if the deadline has passed."""
    end = _deadline.get()
    return end is not None and time.monotonic() > end


def check() -> None:
    """Raise DeadlineExceeded if the deadline has passed."""
    if passed():
        raise DeadlineExceeded("the request took too long and was stopped; send less at once, or try again later.")
