"""A Redis cache in front of another store.

    redis://127.0.0.1:6379/0?behind=postgresql%3A%2F%2Fuser%40host%2Fname

The store behind the cache holds all episodes and receives every write. A cache key contains the scope's change number,
which is read from that store for each query, so that no entry is used after a change. If Redis is empty or fails,
queries go to the store.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np

from memometer.store.delegating_store import DelegatingStore
from memometer.store.episode import Episode, SearchResult, StoreError, VectorFormat
from memometer.store.hybrid_scoring import DEFAULT, Weights, recency
from memometer.store.protocol import Change, Store
from memometer.store.url import without_password

KEEP_SECONDS = 3600
TIMEOUT_SECONDS = 1.0
RETRY_SECONDS = 10.0
"""Pause after a failure of Redis, in which queries go to the store behind it."""


class RedisCache(DelegatingStore):
    """Caches search results and episodes by id.

    Args:
        url: URL of the Redis server.
        behind: the store that holds the episodes; it is closed with the cache.
        name: name of that store in the cache's keys.

    Raises:
        StoreError: the URL is invalid or the package redis is missing.
    """

    def __init__(self, url: str, behind: Store, *, name: str) -> None:
        try:
            import redis
        except ImportError as error:
            raise StoreError("a redis: store needs the package redis; run pip install redis.") from error
        self.default_bits, self.identity = behind.default_bits, behind.identity
        self._behind = behind
        self._prefix = f"memory:{_digest(behind.identity or name)[:16]}"
        self._failure = redis.RedisError
        try:
            self._redis: Any = redis.Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS)
            self._redis.connection_pool.make_connection()  # checks the options without connecting
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"invalid Redis URL {without_password(url)} ({error}); expected redis://host:port/0"
            ) from error
        self._retry_at = 0.0
        self._deleted: set[str] = set()

    def retrieve_similar(
        self,
        scope: str,
        question: str,
        vector: np.ndarray | None,
        k: int,
        *,
        at: float,
        weights: Weights = DEFAULT,
        encoder: str = "",
        until: float | None = None,
    ) -> list[SearchResult]:
        numbers = None if vector is None else np.asarray(vector, np.float64).tolist()
        # The same question is asked at another time: the time is part of the key only if the score depends on it.
        query = json.dumps([question, numbers, k, at if weights.uses_time else None, asdict(weights), encoder, until])

        def compute() -> str:
            found = self._behind.retrieve_similar(
                scope, question, vector, k, at=at, weights=weights, encoder=encoder, until=until
            )
            return json.dumps([{**vars(hit), "episode": _to_json(hit.episode)} for hit in found])

        with self.snapshot():
            hits = json.loads(self._cached(scope, f"asked:{query}", compute))
        results = (SearchResult(**{**hit, "episode": _from_json(hit["episode"])}) for hit in hits)
        return [replace(hit, recency=recency(hit.episode.at, at, weights)) for hit in results]

    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        def compute() -> str:
            return json.dumps([_to_json(episode) for episode in self._behind.get(scope, ids)])

        with self.snapshot():
            episodes = json.loads(self._cached(scope, f"ids:{json.dumps(list(ids))}", compute))
        return [_from_json(episode) for episode in episodes]

    def _cached(self, scope: str, query: str, compute: Callable[[], str]) -> str:
        """Return the cached result of a query, or compute and cache it."""
        changes = self._behind.size(scope).changes
        key = f"{self._keys_of(scope)}:{_digest(json.dumps([changes, query]))}"
        known = self._call(lambda: self._redis.get(key))
        if known is not None:
            return str(known, "utf-8")
        result = compute()
        self._call(lambda: self._redis.set(key, result, ex=KEEP_SECONDS))
        return result

    def _keys_of(self, scope: str) -> str:
        """Return how the keys of a scope start."""
        return f"{self._prefix}:{_digest(scope)[:16]}"

    def _call(self, action: Callable[[], Any]) -> Any:
        """Call Redis; return None if it fails. After a failure it is not called for `RETRY_SECONDS`."""
        if time.monotonic() < self._retry_at:
            return None
        try:
            return action()
        except (self._failure, OSError) as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            print(f"Redis failed ({error}). Queries go to the store behind it for a while.", file=sys.stderr)
            return None

    # ------------------------------------------------------------ passed on to the store behind the cache

    def source(self, scope: str) -> Store:
        return self._behind

    def snapshot(self) -> AbstractContextManager[None]:
        return self._behind.snapshot()

    def transaction(self) -> AbstractContextManager[None]:
        return self._behind.transaction()

    def vector_format(self) -> VectorFormat | None:
        return self._behind.vector_format()

    def set_vector_format(self, vectors: VectorFormat) -> None:
        self._behind.set_vector_format(vectors)

    def scopes(self) -> list[str]:
        return self._behind.scopes()

    def apply(self, scope: str, change: Change) -> list[bool]:
        return self._behind.apply(scope, change)

    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        deleted = self._behind.delete(scope, ids)
        self._deleted.add(scope)
        self._remove_results(scope)
        return deleted

    def erase(self) -> None:
        for scope in list(self._deleted):  # again, because a search may have run during the deletion
            self._remove_results(scope)
            self._deleted.discard(scope)
        self._behind.erase()

    def _remove_results(self, scope: str) -> None:
        """Remove the results of a scope, which may hold deleted texts."""

        def remove() -> None:
            for key in self._redis.scan_iter(f"{self._keys_of(scope)}:*", count=1000):
                self._redis.unlink(key)

        self._call(remove)

    def compact(self) -> None:
        self._behind.compact()

    def check(self) -> list[str]:
        return self._behind.check()

    def close(self) -> None:
        self._redis.close()
        self._behind.close()


def from_url(url: str) -> RedisCache:
    """Open a URL of the Redis client, or `redis+unix:///path` for a socket, with the option `behind` after the `?`."""
    from memometer.store import open_store

    address, _, query = url.removeprefix("redis+").partition("?")
    options = dict(parse_qsl(query))
    behind = options.pop("behind", "")
    if not behind or behind.startswith(("redis", "memory")):  # two processes would share the keys of two memories
        raise StoreError(
            "a redis: store is a cache and needs a store behind it; write redis://host:port/0?behind=URL with the "
            "percent-encoded URL of a sqlite:, postgresql: or chroma: store."
        )
    return RedisCache(f"{address}?{urlencode(options)}" if options else address, open_store(behind), name=behind)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _to_json(episode: Episode) -> dict[str, Any]:
    return {**vars(episode), "codes": episode.codes.hex(), "details": dict(episode.details)}


def _from_json(fields: dict[str, Any]) -> Episode:
    return Episode(**{**fields, "codes": bytes.fromhex(fields["codes"]), "sources": tuple(fields["sources"])})
