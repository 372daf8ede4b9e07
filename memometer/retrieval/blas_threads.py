"""Limit BLAS to one thread. Small products are faster then, and their last bits do not depend on the thread count."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_lock = threading.Lock()
_open: list[Any] = []  # one entry per open block; the limit applies to the whole process


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one BLAS thread as long as any thread is inside the block; the last one to leave restores the limit."""
    with _lock:
        _open.append(_controller().limit(limits=1) if not _open else _open[0])
    try:
        yield
    finally:
        with _lock:
            limit = _open.pop()
            if not _open:
                limit.restore_original_limits()


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
