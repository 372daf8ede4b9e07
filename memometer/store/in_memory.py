"""Episodes in this process and nowhere else: a value, which can be compared, copied and thrown away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from memometer.retrieval.tokenize import terms
from memometer.store.episode import Episode, Size, StoreError, Vectors, same_as, standing_for
from memometer.store.protocol import Postings, Store


@dataclass
class Scope:
    """Episodes in the order of arrival, the terms of each, and where each id is."""

    episodes: list[Episode] = field(default_factory=list)
    terms: list[Counter[str]] = field(default_factory=list)
    row: dict[str, int] = field(default_factory=dict)
    changes: int = 0

    def find(self, id: str) -> Episode:
        """The episode of an id; an archived one for an id that is not known."""
        return self.episodes[self.row[id]] if id in self.row else Episode(id, "", 0.0, archived=True)

    def put(self, episode: Episode) -> None:
        """In the place of the one that has its id, where there is one."""
        if episode.id in self.row:
            self.episodes[self.row[episode.id]] = episode

    @property
    def live(self) -> list[int]:
        return [row for row, episode in enumerate(self.episodes) if not episode.archived]


@dataclass
class InMemory(Store):
    """A row is a position in its scope's list."""

    known: dict[str, Scope] = field(default_factory=dict)
    kind: Vectors | None = None

    def vectors(self) -> Vectors | None:
        return self.kind

    def declare(self, vectors: Vectors) -> None:
        self.kind = vectors.checked_against(self.kind)

    def scopes(self) -> list[str]:
        return sorted(name for name, scope in self.known.items() if scope.episodes)

    def size(self, scope: str) -> Size:
        known = self.known.get(scope, Scope())
        live = known.live
        return Size(
            len(live), len(known.episodes) - len(live), sum(known.terms[row].total() for row in live), known.changes
        )

    def change(
        self,
        scope: str,
        add: Sequence[Episode] = (),
        archive: Sequence[str] = (),
        uses: Mapping[str, int] | None = None,
        merge: Mapping[str, Sequence[str]] | None = None,
    ) -> list[bool]:
        known = self.known.setdefault(scope, Scope())
        for episode in add:
            if episode.id in known.row:
                same_as(known.episodes[known.row[episode.id]], episode)
        known.changes += 1
        new = []
        for episode in add:
            new.append(episode.id not in known.row)
            if new[-1]:
                known.row[episode.id] = len(known.episodes)
                known.episodes.append(episode)
                known.terms.append(Counter(terms(episode.text)))
        for id in archive:
            known.put(replace(known.find(id), archived=True))
        for id, count in (uses or {}).items():
            known.put(replace(known.find(id), uses=known.find(id).uses + count))
        for id, others in (merge or {}).items():
            live = [known.find(other) for other in others if not known.find(other).archived]
            if live and not known.find(id).archived:
                known.put(standing_for(known.find(id), live))
                for other in live:
                    known.put(replace(other, archived=True))
        return new

    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        known = self.known.get(scope, Scope())
        gone = set(known.row if ids is None else ids) & set(known.row)
        left = [row for row, episode in enumerate(known.episodes) if episode.id not in gone]
        known.episodes, known.terms = [known.episodes[row] for row in left], [known.terms[row] for row in left]
        known.row = {episode.id: row for row, episode in enumerate(known.episodes)}
        known.changes += 1
        return len(gone)

    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        known = self.known.get(scope, Scope())
        return [known.episodes[known.row[id]] for id in ids if id in known.row]

    def scan(self, scope: str) -> Iterator[Episode]:
        yield from list(self.known.get(scope, Scope()).episodes)

    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        known = self.known.get(scope, Scope())
        found = {}
        for word in words:
            if rows := [row for row in known.live if word in known.terms[row]]:
                counts = np.array([known.terms[row][word] for row in rows], float)
                found[word] = (np.array(rows), counts, np.array([known.terms[row].total() for row in rows], float))
        return found

    def nearest(self, scope: str, query: np.ndarray, k: int) -> list[int]:
        known = self.known.get(scope, Scope())
        rows = [row for row in known.live if known.episodes[row].codes]
        if not rows or not self.kind:
            return []
        quantiser = self.kind.quantiser
        codes = quantiser.matrix([known.episodes[row].codes for row in rows])
        return self.best(scope, np.array(rows), quantiser.cosines(codes, quantiser.norms(codes), query), k)

    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        known = self.known.get(scope, Scope())
        placed = sorted((-known.episodes[row].at, known.episodes[row].id, row) for row in known.live)
        after = (-before[0], before[1]) if before else None
        return [row for at, id, row in placed if after is None or (at, id) > after][:k]

    def around(self, scope: str, rows: Sequence[int], reach: int) -> dict[int, list[int]]:
        live = self.known.get(scope, Scope()).live
        places = {row: place for place, row in enumerate(live)}
        return {row: live[max(0, places[row] - reach) : places[row] + reach + 1] for row in rows if row in places}

    def rows(self, scope: str, rows: Sequence[int]) -> dict[int, Episode]:
        episodes = self.known.get(scope, Scope()).episodes
        return {row: episodes[row] for row in rows if not episodes[row].archived}

    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        return [self.known[scope].episodes[row].id for row in rows]

    def close(self) -> None:
        pass


def from_url(url: str) -> InMemory:
    """`memory:` and nothing behind it."""
    if url != "memory:":
        raise StoreError(f"{url!r} names no store; a store in this process is memory: and nothing more.")
    return InMemory()
