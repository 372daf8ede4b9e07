"""Redis as the hot layer of another store: what was asked and fetched lately is answered from memory.

    redis://127.0.0.1:6379/0?behind=postgresql%3A%2F%2Fuser%40host%2Fname

The store behind keeps everything, and every write goes there. What Redis holds carries the number of changes that its
scope had seen, which is asked of the store behind each time: an answer from before a change is never given after it,
and a Redis that is emptied, killed or gone costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qsl, urlencode

import numpy as np

from memometer.store.episode import Episode, Found, Size, StoreError, Vectors
from memometer.store.hybrid_scoring import DEFAULT, Weights
from memometer.store.protocol import Postings, Store
from memometer.store.url import without_password

KEEP_SECONDS = 3600
TIMEOUT_SECONDS = 1.0


class Hot(Store):
    """A store with Redis before it.

    Args:
        url: of the Redis server.
        behind: the store that holds the episodes. It is closed with this one.
    """

    def __init__(self, url: str, behind: Store, *, name: str) -> None:
        try:
            import redis
        except ImportError as error:
            raise StoreError("a redis: store needs the client of that name: pip install redis.") from error
        self.default_bits = behind.default_bits
        self._behind = behind
        self._prefix = f"memory:{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        self._failure = redis.RedisError
        try:
            self._redis: Any = redis.Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS)
            self._redis.connection_pool.make_connection()  # which looks at the options, and asks nobody
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"{without_password(url)!r} names no Redis ({error}); write redis://host:port/0."
            ) from error
        self._usable = True

    def retrieve_similar(
        self,
        scope: str,
        question: str,
        vector: np.ndarray | None,
        k: int,
        *,
        at: float,
        weights: Weights = DEFAULT,
    ) -> list[Found]:
        asked = None if vector is None else np.asarray(vector, np.float64).tolist()
        what = json.dumps([question, asked, k, at, asdict(weights)])

        def compute() -> str:
            found = self._behind.retrieve_similar(scope, question, vector, k, at=at, weights=weights)
            return json.dumps([{**vars(hit), "episode": _written(hit.episode)} for hit in found])

        with self.reading():
            told = json.loads(self._cached(scope, f"asked:{what}", compute))
        return [Found(**{**hit, "episode": _read(hit["episode"])}) for hit in told]

    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        def compute() -> str:
            return json.dumps([_written(episode) for episode in self._behind.get(scope, ids)])

        with self.reading():
            return [_read(told) for told in json.loads(self._cached(scope, f"ids:{json.dumps(list(ids))}", compute))]

    def _cached(self, scope: str, what: str, compute: Callable[[], str]) -> str:
        """What `compute` says, or has said since the scope last changed."""
        named = json.dumps([scope, self._behind.size(scope).changes, what])
        key = f"{self._prefix}:{hashlib.sha256(named.encode()).hexdigest()}"
        known = self._ask(lambda: self._redis.get(key))
        if known is not None:
            return str(known, "utf-8")
        told = compute()
        self._ask(lambda: self._redis.set(key, told, ex=KEEP_SECONDS))
        return told

    def _ask(self, action: Callable[[], Any]) -> Any:
        """None where Redis does not answer; then it is asked no more."""
        if not self._usable:
            return None
        try:
            return action()
        except (self._failure, OSError) as error:
            self._usable = False
            print(f"Redis is not used: it does not answer ({error}); everything is asked behind it.", file=sys.stderr)
            return None

    # ------------------------------------------------------------ what the store behind does

    def reading(self) -> AbstractContextManager[None]:
        return self._behind.reading()

    def transaction(self) -> AbstractContextManager[None]:
        return self._behind.transaction()

    def vectors(self) -> Vectors | None:
        return self._behind.vectors()

    def declare(self, vectors: Vectors) -> None:
        self._behind.declare(vectors)

    def scopes(self) -> list[str]:
        return self._behind.scopes()

    def size(self, scope: str) -> Size:
        return self._behind.size(scope)

    def change(
        self,
        scope: str,
        add: Sequence[Episode] = (),
        archive: Sequence[str] = (),
        uses: Mapping[str, int] | None = None,
        merge: Mapping[str, Sequence[str]] | None = None,
    ) -> list[bool]:
        return self._behind.change(scope, add, archive, uses, merge)

    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        return self._behind.delete(scope, ids)

    def scan(self, scope: str) -> Iterator[Episode]:
        return self._behind.scan(scope)

    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        return self._behind.postings(scope, words)

    def nearest(self, scope: str, query: np.ndarray, k: int) -> list[int]:
        return self._behind.nearest(scope, query, k)

    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        return self._behind.newest(scope, k, before)

    def around(self, scope: str, rows: Sequence[int], reach: int) -> dict[int, list[int]]:
        return self._behind.around(scope, rows, reach)

    def rows(self, scope: str, rows: Sequence[int]) -> dict[int, Episode]:
        return self._behind.rows(scope, rows)

    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        return self._behind.ids(scope, rows)

    def compact(self) -> None:
        self._behind.compact()

    def check(self) -> list[str]:
        return self._behind.check()

    def close(self) -> None:
        self._redis.close()
        self._behind.close()


def from_url(url: str) -> Hot:
    """As Redis's client takes it, or `redis+unix:///path` for its `unix:///path`, with `behind` after the `?`."""
    from memometer.store import open_store

    address, _, query = url.removeprefix("redis+").partition("?")
    options = dict(parse_qsl(query))
    behind = options.pop("behind", "")
    if not behind or behind.startswith("redis"):
        raise StoreError(
            "a redis: store is a hot layer and needs a store behind it; write redis://host:port/0?behind=URL, with the "
            "URL of a sqlite:, postgresql: or chroma: store, percent-encoded."
        )
    return Hot(f"{address}?{urlencode(options)}" if options else address, open_store(behind), name=behind)


def _written(episode: Episode) -> dict[str, Any]:
    return {**vars(episode), "codes": episode.codes.hex(), "details": dict(episode.details)}


def _read(told: dict[str, Any]) -> Episode:
    return Episode(**{**told, "codes": bytes.fromhex(told["codes"]), "sources": tuple(told["sources"])})
