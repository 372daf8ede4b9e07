"""One BLAS thread while small products run: on several threads they wait for each other, spinning, and the last bits of
a sum depend on how many there are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_lock = threading.Lock()
_inside: list[Any] = []  # one entry for each `with` that is open; the number of BLAS threads is the whole process's


@contextmanager
def one_thread() -> Iterator[None]:
    """For as long as any thread is inside, BLAS has one thread; the last to leave gives back what there was before."""
    with _lock:
        _inside.append(_controller().limit(limits=1) if not _inside else _inside[0])
    try:
        yield
    finally:
        with _lock:
            limit = _inside.pop()
            if not _inside:
                limit.restore_original_limits()


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
