"""The memory that the service's process keeps from the system: glibc's heaps."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3  # of malloc.h
TRIM_SECONDS = 10


@contextmanager
def small_heaps() -> Iterator[None]:
    """glibc gives threads heaps of their own, and keeps in each what is free between two things that are not. Two heaps
    serve all threads, arrays stand outside of them, and what is free goes back to the system every TRIM_SECONDS."""
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
