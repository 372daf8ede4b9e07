"""Stores for episodes, opened by URL. To add one, add a file to this folder and a line to `SCHEMES`.

memory:                        this process only
sqlite:///memory.db            one file; three slashes for a relative path, four for an absolute one
postgresql://user@host/name    a PostgreSQL database with pgvector
chroma:///folder               ChromaDB in a folder, or chroma://host:port
redis://host:port/0?behind=URL a Redis cache in front of another store; redis+unix:// for a socket
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
    "redis": "memometer.store.redis_cache",
    "redis+unix": "memometer.store.redis_cache",
}


def open_store(url: str) -> Store:
    """Open the store at a URL. It is created if it does not exist.

    Args:
        url: one of the URLs above.

    Raises:
        StoreError: the scheme is unknown, the URL is invalid, or the store cannot be opened.
    """
    scheme = url.partition(":")[0]
    if scheme not in SCHEMES:
        supported = ", ".join(f"{name}:" for name in SCHEMES)
        raise StoreError(f"unknown store URL {without_password(url)}; supported schemes: {supported}")
    try:
        return cast("Store", import_module(SCHEMES[scheme]).from_url(url))
    except ValueError as error:  # urllib rejects brackets and ports
        raise StoreError(f"invalid store URL {without_password(url)} ({error}).") from error


_lock = threading.Lock()
_opened: dict[tuple[int, str], Store] = {}


def opened(url: str) -> Store:
    """Return the store at a URL. It is opened once per process and stays open."""
    with _lock:
        key = os.getpid(), url
        if key not in _opened:
            _opened[key] = open_store(url)
        return _opened[key]


def close(url: str) -> None:
    """Close the store at a URL if `opened` has opened it."""
    with _lock:
        store = _opened.pop((os.getpid(), url), None)
    if store:
        store.close()
