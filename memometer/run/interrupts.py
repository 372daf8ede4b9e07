"""Ctrl-C without loss."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets, so that the calls in flight can end; the second one quits."""
    stop = threading.Event()

    def ask(*_: object) -> None:
        if stop.is_set():
            os._exit(4)
        stop.set()
        print("\nStopping after the calls in flight; once more to quit at once.", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
