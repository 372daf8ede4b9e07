"""Progress bars and messages on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

LINE_SECONDS = 30.0
"""Seconds between two lines of progress where there is no terminal."""


def bar(iterable: Any = None, *, total: int | None = None, initial: int = 0, desc: str = "", **options: Any) -> Any:
    """Create a tqdm bar on a terminal, and `ProgressLines` elsewhere, such as in the log of a CI job.

    Args:
        iterable: Steps to iterate over; None if `update` is called for each step.
        total: Number of steps; None for the length of `iterable`.
        initial: Steps that are done already.
        desc: Label.
        options: Further options of tqdm.
    """
    if not sys.stderr.isatty():
        return ProgressLines(iterable, total=total, initial=initial, desc=desc)
    from tqdm import tqdm

    return tqdm(
        iterable, total=total, initial=initial, desc=desc, file=sys.stderr, mininterval=0.5, disable=False, **options
    )


class ProgressLines:
    """Progress as lines of text on standard error, at most one in `LINE_SECONDS`; with the methods of a tqdm bar."""

    def __init__(self, iterable: Any, *, total: int | None, initial: int, desc: str) -> None:
        self._iterable = iterable
        self._total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
        self._done, self._desc = initial, desc
        self._postfix: dict[str, Any] = {}
        self._next = time.monotonic() + LINE_SECONDS

    def __iter__(self) -> Iterator[Any]:
        for step in self._iterable or ():
            yield step
            self.update()

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_postfix(self, postfix: dict[str, Any]) -> None:
        """Show further numbers in the next line."""
        self._postfix = dict(postfix)

    def set_postfix_str(self, text: str, **_: Any) -> None:
        """Show further text in the next line."""
        self._postfix = {text: ""} if text else {}

    def update(self, steps: int = 1) -> None:
        """Count steps that are done."""
        self._done += steps
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            of = f" of {self._total:,}" if self._total else ""
            more = "".join(f", {f'{value} {name}'.strip()}" for name, value in self._postfix.items())
            eprint(f"{self._desc}: {self._done:,}{of}{more}")

    @staticmethod
    def write(text: str, **_: Any) -> None:
        """Print a line, as `tqdm.write` does."""
        eprint(text)


def eprint(text: str) -> None:
    """Print a message to standard error; standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def time_left(seconds: float, done: int, total: int) -> str:
    """A sentence with the estimated time that remains.

    Args:
        seconds: Time that the first `done` of `total` steps took.
        done: Steps that are done, at least one.
        total: All steps.
    """
    left = round(seconds / done * max(0, total - done))
    hours, minutes = left // 3600, left % 3600 // 60
    remaining = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{left} s"
    return f"About {remaining} remain (estimated from the first {done} answers)."
