"""A store that reads from another store."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from memometer.store.episode import Columns, Episode, ScopeSize
from memometer.store.protocol import Postings, Store


class DelegatingStore(Store):
    """Passes every query of a scope to the store that `source` returns for it."""

    @abstractmethod
    def source(self, scope: str) -> Store:
        """Return the store that holds the episodes of a scope."""

    def size(self, scope: str) -> ScopeSize:
        return self.source(scope).size(scope)

    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        return self.source(scope).get(scope, ids)

    def scan(self, scope: str) -> Iterator[Episode]:
        return self.source(scope).scan(scope)

    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        return self.source(scope).postings(scope, words)

    def nearest(self, scope: str, query: np.ndarray, k: int) -> list[int]:
        return self.source(scope).nearest(scope, query, k)

    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        return self.source(scope).newest(scope, k, before)

    def neighbours(self, scope: str, rows: np.ndarray, distance: int) -> np.ndarray:
        return self.source(scope).neighbours(scope, rows, distance)

    def columns(self, scope: str, rows: np.ndarray, query: np.ndarray | None, *, uses: bool = False) -> Columns:
        return self.source(scope).columns(scope, rows, query, uses=uses)

    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        return self.source(scope).ids(scope, rows)
