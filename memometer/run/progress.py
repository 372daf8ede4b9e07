"""Progress bars and messages on standard error."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO


def bar(iterable: Any = None, **options: Any) -> Any:
    """Create a tqdm bar that also works after standard error was closed (`2>&1 | head`).

    When a write fails, tqdm does not release its lock, and the next update of a bar would block.
    """
    from tqdm import tqdm

    return tqdm(iterable, file=OutputUntilClosed(sys.stderr), mininterval=0.5, **options)


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


class OutputUntilClosed:
    """A stream that ignores all output after its reader was closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._leave()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._leave()

    def _leave(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
