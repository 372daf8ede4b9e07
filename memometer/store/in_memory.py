"""A store in the memory of this process, as a value that can be compared and copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from memometer.retrieval.tokenize import terms
from memometer.store.episode import Columns, Episode, ScopeSize, StoreError, VectorFormat, check_same, merged
from memometer.store.protocol import Change, Postings, Store


@dataclass
class Scope:
    """Episodes in insertion order, the terms of each, and the position of each id."""

    episodes: list[Episode] = field(default_factory=list)
    terms: list[Counter[str]] = field(default_factory=list)
    row: dict[str, int] = field(default_factory=dict)
    changes: int = 0

    def find(self, id: str) -> Episode:
        """Return the episode with an id; for an unknown id an archived one."""
        return self.episodes[self.row[id]] if id in self.row else Episode(id, "", 0.0, archived=True)

    def update(self, episode: Episode) -> None:
        """Replace the episode that has the same id, if there is one."""
        if episode.id in self.row:
            self.episodes[self.row[episode.id]] = episode

    @property
    def live(self) -> list[int]:
        return [row for row, episode in enumerate(self.episodes) if not episode.archived]


@dataclass
class InMemory(Store):
    """All scopes as lists. A row is a position in its scope's list."""

    known: dict[str, Scope] = field(default_factory=dict)
    kind: VectorFormat | None = None

    def vector_format(self) -> VectorFormat | None:
        return self.kind

    def set_vector_format(self, vectors: VectorFormat) -> None:
        vectors.check_compatible(self.kind)
        self.kind = vectors

    def scopes(self) -> list[str]:
        return sorted(name for name, scope in self.known.items() if scope.episodes)

    def size(self, scope: str) -> ScopeSize:
        known = self._scope(scope)
        live = known.live
        terms = sum(known.terms[row].total() for row in live)
        return ScopeSize(len(live), len(known.episodes) - len(live), terms, known.changes)

    def apply(self, scope: str, change: Change) -> list[bool]:
        known = self.known.setdefault(scope, Scope())
        for episode in change.add:
            if episode.id in known.row:
                check_same(known.find(episode.id), episode)
        known.changes += 1
        new = []
        for episode in change.add:
            new.append(episode.id not in known.row)
            if not new[-1] and not episode.archived:
                known.update(replace(known.find(episode.id), archived=False))
            elif new[-1]:
                known.row[episode.id] = len(known.episodes)
                known.episodes.append(episode)
                known.terms.append(Counter(terms(episode.text)))
        for id in change.archive:
            known.update(replace(known.find(id), archived=True))
        for id in change.restore:
            known.update(replace(known.find(id), archived=False))
        for id, count in change.uses.items():
            known.update(replace(known.find(id), uses=known.find(id).uses + count))
        for id, others in change.merge.items():
            live = [known.find(other) for other in others if not known.find(other).archived]
            if live and not known.find(id).archived:
                known.update(merged(known.find(id), live))
                for other in live:
                    known.update(replace(other, archived=True))
        return new

    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        known = self._scope(scope)
        gone = set(known.row if ids is None else ids) & set(known.row)
        left = [row for row, episode in enumerate(known.episodes) if episode.id not in gone]
        known.episodes, known.terms = [known.episodes[row] for row in left], [known.terms[row] for row in left]
        known.row = {episode.id: row for row, episode in enumerate(known.episodes)}
        known.changes += 1
        return len(gone)

    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        known = self._scope(scope)
        return [known.find(id) for id in ids if id in known.row]

    def scan(self, scope: str) -> Iterator[Episode]:
        yield from list(self._scope(scope).episodes)

    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        known = self._scope(scope)
        found = {}
        for word in words:
            if rows := [row for row in known.live if word in known.terms[row]]:
                counts = np.array([known.terms[row][word] for row in rows], float)
                found[word] = (np.array(rows), counts, np.array([known.terms[row].total() for row in rows], float))
        return found

    def nearest(self, scope: str, query: np.ndarray, k: int) -> list[int]:
        known = self._scope(scope)
        rows = [row for row in known.live if known.episodes[row].codes]
        if not rows or not self.kind:
            return []
        quantiser = self.kind.quantiser
        codes = quantiser.matrix([known.episodes[row].codes for row in rows])
        return self.top_rows(scope, np.array(rows), quantiser.cosines(codes, quantiser.norms(codes), query), k)

    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        known = self._scope(scope)
        placed = sorted((-known.episodes[row].at, known.episodes[row].id, row) for row in known.live)
        after = (-before[0], before[1]) if before else None
        return [row for at, id, row in placed if after is None or (at, id) > after][:k]

    def neighbours(self, scope: str, rows: np.ndarray, distance: int) -> np.ndarray:
        live = np.array(self._scope(scope).live, np.int64)
        places = np.searchsorted(live, rows)[:, None] + np.arange(-distance, distance + 1)
        inside = (places >= 0) & (places < len(live))
        return np.where(inside, live[np.clip(places, 0, max(0, len(live) - 1))], -1) if len(live) else -1 + 0 * places

    def columns(self, scope: str, rows: np.ndarray, query: np.ndarray | None, *, uses: bool = False) -> Columns:
        episodes = self._scope(scope).episodes
        numbers = rows.tolist()
        return Columns.of(numbers, [episodes[row] for row in numbers], self.kind, query)

    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        return [self._scope(scope).episodes[row].id for row in rows]

    def close(self) -> None:
        pass

    def _scope(self, scope: str) -> Scope:
        return self.known.get(scope, Scope())


def from_url(url: str) -> InMemory:
    """Open `memory:`, which takes no options."""
    if url != "memory:":
        raise StoreError(f"invalid in-memory store URL {url!r}; expected memory:")
    return InMemory()
