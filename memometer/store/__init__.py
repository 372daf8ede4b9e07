"""Stores by the scheme of their URL. A new back end is a file in this folder and a line here.

memory:                        this process only
sqlite:///memory.db            one file (three slashes and a relative path, four and an absolute one)
postgresql://user@host/name    tables of a PostgreSQL database with pgvector
chroma:///folder               ChromaDB, in a folder or as chroma://host:port
redis://host:port/0?behind=URL a hot layer in Redis before another store; redis+unix:// by its socket
"""

from __future__ import annotations

import os
import threading
from importlib import import_module
from typing import TYPE_CHECKING, cast

from memometer.store.episode import StoreError
from memometer.store.url import without_password

if TYPE_CHECKING:
    from memometer.store.protocol import Store

SCHEMES = {
    "memory": "memometer.store.in_memory",
    "sqlite": "memometer.store.sqlite",
    "chroma": "memometer.store.chroma",
    "postgresql": "memometer.store.postgres",
    "redis": "memometer.store.redis",
    "redis+unix": "memometer.store.redis",
}


def open_store(url: str) -> Store:
    """The store at a URL, made where there is none.

    Raises StoreError with one sentence for a scheme that is not known or a store that cannot be opened.
    """
    scheme = url.partition(":")[0]
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise StoreError(f"{without_password(url)!r} names no store; it may begin with {known}.")
    try:
        return cast("Store", import_module(SCHEMES[scheme]).from_url(url))
    except ValueError as error:  # of urllib: brackets or a port that are none
        raise StoreError(f"{without_password(url)!r} cannot be read ({error}); write it as {__name__} says.") from error


_lock = threading.Lock()
_opened: dict[tuple[int, str], Store] = {}


def opened(url: str) -> Store:
    """The store at a URL, opened once in this process and left open."""
    with _lock:
        key = os.getpid(), url
        if key not in _opened:
            _opened[key] = open_store(url)
        return _opened[key]


def close(url: str) -> None:
    """Close the store at a URL, where `opened` has opened it."""
    with _lock:
        store = _opened.pop((os.getpid(), url), None)
    if store:
        store.close()
