"""Ctrl-C ends a run without losing answers."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event.

    Yields:
        An event that the first signal sets, so that the calls in flight can end. The second signal ends the process
        with exit code 4.
    """
    stop = threading.Event()

    def ask(*_: object) -> None:
        if stop.is_set():
            os._exit(4)
        stop.set()
        print("\nStopping after the calls in flight; press Ctrl-C again to quit at once.", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
