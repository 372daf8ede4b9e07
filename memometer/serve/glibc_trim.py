"""Settings of glibc's allocator that keep the resident memory of a long-running process flat."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3  # from malloc.h
TRIM_SECONDS = 10


@contextmanager
def trimmed_heap() -> Iterator[None]:
    """Limit glibc to two heaps, and return free memory to the system every TRIM_SECONDS.

    By default glibc gives each thread its own heap and keeps fragmented free memory in it. Arrays above 64 KB are
    mapped separately. Does nothing with other C libraries.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc, ended = ctypes.CDLL(None), Event()
    libc.mallopt(M_ARENA_MAX, 2)
    libc.mallopt(M_MMAP_THRESHOLD, 64 * 1024)

    def trim() -> None:
        while not ended.wait(TRIM_SECONDS):
            libc.malloc_trim(0)

    Thread(target=trim, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
