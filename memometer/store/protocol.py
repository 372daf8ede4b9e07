"""Episodes that outlive the process: the one interface of every store, and what is the same in all of them.

    with open_store("sqlite:///memory.db") as store:
        store.store_episode("agent-1", Episode("D1:3", "Nadia: I sold the kayak.", at=1714550400.0), vector)
        found = store.retrieve_similar("agent-1", "Who sold a kayak?", query_vector, k=10, at=1714636800.0)
        store.consolidate("agent-1", at=1714636800.0)

A back end keeps episodes and answers four questions exactly: which episodes hold a term, which vectors are nearest,
which episodes are newest, and what an episode is. The rest is written once, here and in fusion.py, so that every store
finds the same. Nothing here reads the clock: time is an argument, in Unix seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from memometer.retrieval.bm25 import idf, saturated
from memometer.retrieval.tokenize import terms
from memometer.store import hybrid_scoring
from memometer.store.episode import Episode, Found, Size, Vectors
from memometer.store.hybrid_scoring import DEFAULT, REACH, Weights

DEFAULT_BITS = 2
"""A number of a vector, of a new store: half the bytes of 4, and LOCOMO's evidence is recalled as well with either once
words and neighbours count too (benchmarks/stores.py)."""

LEAST_POOL = 50
"""At least so many of the best by words, by vector and by time are weighed for any question."""


Postings = Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Where terms stand: for each the rows that hold it (ascending), how often, and how many terms each row has in all."""


@dataclass(frozen=True)
class Consolidated:
    """What `consolidate` did, in ids: each episode that now stands for others, with these; and what was forgotten. The
    others and the forgotten are archived."""

    merged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    forgotten: tuple[str, ...] = ()


class Store(ABC):
    """Episodes by scope: an agent, a user, a conversation. Scopes share nothing.

    Rows are a back end's own numbers for episodes, stable while it is open.
    """

    default_bits = DEFAULT_BITS

    # ------------------------------------------------------------ what a back end does

    @abstractmethod
    def vectors(self) -> Vectors | None:
        """What the vectors are; None before the first one."""

    @abstractmethod
    def declare(self, vectors: Vectors) -> None:
        """Fix what the vectors are. Raises StoreError where they are something else already."""

    @abstractmethod
    def scopes(self) -> list[str]:
        """All scopes that hold episodes, sorted."""

    @abstractmethod
    def size(self, scope: str) -> Size:
        """How much there is; zeros for a scope that is not known."""

    @abstractmethod
    def change(
        self,
        scope: str,
        add: Sequence[Episode] = (),
        archive: Sequence[str] = (),
        uses: Mapping[str, int] | None = None,
        merge: Mapping[str, Sequence[str]] | None = None,
    ) -> list[bool]:
        """In one transaction: add episodes, archive others, count further uses, and let episodes stand for others. All
        is there when it returns.

        What an episode stands for is archived; it becomes a source of it, as its own sources do, and it takes over the
        uses, and the importance where that is greater. Merging what is archived or unknown changes nothing.
        Returns which of `add` are new. An id that is there already is not written again.
        Raises Conflict, and changes nothing, where it belongs to an episode of another text or time.
        """

    @abstractmethod
    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        """Remove episodes for good, archived ones too: those of these ids, or all. Returns how many there were."""

    @abstractmethod
    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        """The episodes of these ids, archived ones too, in the order of `ids`; unknown ids are left out."""

    @abstractmethod
    def scan(self, scope: str) -> Iterator[Episode]:
        """Every episode, archived ones too, in the order of arrival."""

    @abstractmethod
    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        """Where these terms stand in the episodes that can be found."""

    @abstractmethod
    def nearest(self, scope: str, query: np.ndarray, k: int) -> list[int]:
        """The rows of the k vectors of largest cosine with a `Quantiser.query`; of equal ones the smaller id."""

    @abstractmethod
    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        """The rows of the k latest episodes; of equal ones the smaller id. `before` is the time and id of one that they
        come after in this order: page by page, all are seen, whatever is added or removed meanwhile."""

    @abstractmethod
    def around(self, scope: str, rows: Sequence[int], reach: int) -> dict[int, list[int]]:
        """For each row those that arrived up to `reach` before and after it, with itself, in the order of arrival."""

    @abstractmethod
    def rows(self, scope: str, rows: Sequence[int]) -> dict[int, Episode]:
        """The episodes of rows, without those that were archived in the meantime; their texts and details may be left
        out."""

    @abstractmethod
    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        """The id of each row."""

    def reading(self) -> AbstractContextManager[None]:
        """What is read in here is of one moment, where the back end can give that."""
        return nullcontext()

    def transaction(self) -> AbstractContextManager[None]:
        """All that is written in here is there afterwards, or nothing is, where the back end can give that."""
        return nullcontext()

    def replace(self, scope: str, episode: Episode) -> Episode | None:
        """Put an episode in the place of the one that has its id, in one transaction; the one that was there."""
        with self.transaction():
            self.change(scope)  # from here on nobody else changes the scope
            old = self.get(scope, [episode.id])
            self.delete(scope, [episode.id])
            self.change(scope, add=[episode])
        return old[0] if old else None

    def compact(self) -> None:  # noqa: B027  # most back ends look after themselves
        """Give back space, and bring what is derived up to date; nothing that can be found changes."""

    def check(self) -> list[str]:
        """What is wrong with the store, in sentences; empty where index, counts and text agree."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Nothing may be asked afterwards."""

    # ------------------------------------------------------------ what is the same in all

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def store_episode(self, scope: str, episode: Episode, vector: np.ndarray | None = None) -> bool:
        """Keep an episode; it is there when this returns. False where it was there already.

        Raises Conflict where its id belongs to another text or time.
        """
        return self.store_episodes(scope, [episode], None if vector is None else np.atleast_2d(vector))[0]

    def store_episodes(
        self, scope: str, episodes: Sequence[Episode], vectors: np.ndarray | None = None, *, encoder: str = ""
    ) -> list[bool]:
        """The same of many, all or none. `vectors` has shape (episodes, dimensions); without, `codes` are kept.

        `encoder` names what made the vectors: a store refuses those of another.
        """
        return self.change(scope, add=episodes if vectors is None else self.encoded(episodes, vectors, encoder=encoder))

    def encoded(self, episodes: Sequence[Episode], vectors: np.ndarray, *, encoder: str = "") -> list[Episode]:
        """Episodes with the codes of their vectors."""
        kind = self.vectors()
        if kind is None or (encoder and kind.encoder != encoder) or kind.dimensions != vectors.shape[1]:
            self.declare(Vectors(encoder, vectors.shape[1], kind.bits if kind else self.default_bits))
            kind = self.vectors()
        assert kind
        codes = kind.quantiser.encode(vectors)
        return [replace(e, codes=row.tobytes()) for e, row in zip(episodes, codes, strict=True)]

    def record_uses(self, scope: str, ids: Sequence[str]) -> None:
        """Count that these episodes were used, once for each time that an id stands here."""
        self.change(scope, uses=Counter(ids))

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
        """The k episodes that fit a question best at some time, the best first; of equal ones the smaller id.

        Reads only: uses are counted when `record_uses` is told of them. Fewer than k are found only where there are
        fewer. What is weighed are the best `max(50, 2 k)` by words, by vector and, where it counts, by time, and what
        stands beside them.
        """
        pool = max(LEAST_POOL, 2 * k)
        with self.reading():
            holding, worth = self._bm25(scope, question)
            chosen = set(self.best(scope, holding, worth, pool))
            kind = self.vectors()
            query = kind.quantiser.query(vector) if kind and vector is not None else None
            if query is not None:
                chosen.update(self.nearest(scope, query, pool))
            if weights.by_time or len(chosen) < k:
                chosen.update(self.newest(scope, pool))
            if weights.beside:
                chosen.update(row for window in self.around(scope, list(chosen), REACH).values() for row in window)
            episodes = self.rows(scope, sorted(chosen))
            windows = self.around(scope, list(episodes), REACH) if weights.beside else {}
            found = self._weighed(weights, at, kind, query, (holding, worth), episodes, windows)[:k]
            whole = {episode.id: episode for episode in self.get(scope, [hit.episode.id for hit in found])}
        return [replace(hit, episode=whole[hit.episode.id]) for hit in found]

    def _weighed(
        self,
        weights: Weights,
        at: float,
        kind: Vectors | None,
        query: np.ndarray | None,
        bm25: tuple[np.ndarray, np.ndarray],
        episodes: Mapping[int, Episode],
        windows: Mapping[int, Sequence[int]],
    ) -> list[Found]:
        """Episodes as found, the best first."""
        holding, worth = bm25
        dense = _cosines(kind, query, episodes)
        shares = (worth / max(worth.max(initial=0.0), 1e-30)).tolist()
        lexical = dict(zip(holding.tolist(), shares, strict=True))
        fits = {row: weights.lexical * lexical.get(row, 0.0) + weights.dense * dense[row] for row in episodes}
        beside = hybrid_scoring.fit_beside(fits, {row: episode.at for row, episode in episodes.items()}, windows)
        found = [
            hybrid_scoring.score(
                weights, episode, at, lexical=lexical.get(row, 0.0), dense=dense[row], beside=beside.get(row, 0.0)
            )
            for row, episode in episodes.items()
        ]
        return sorted(found, key=lambda hit: (-hit.score, hit.episode.id))

    def _bm25(self, scope: str, question: str) -> tuple[np.ndarray, np.ndarray]:
        """The rows that hold a term of the question, and the score of each."""
        size = self.size(scope)
        asked = sorted(set(terms(question))) if size.episodes else []
        postings = self.postings(scope, asked)
        rows, worth = [np.zeros(0, np.int64)], [np.zeros(0)]
        for term in asked:
            if term in postings:
                holding, counts, lengths = postings[term]
                rows.append(holding)
                mean = max(1, size.terms) / size.episodes
                worth.append(idf(size.episodes, len(holding)) * saturated(counts, lengths, mean))
        found, position = np.unique(np.concatenate(rows), return_inverse=True)
        return found, np.bincount(position, np.concatenate(worth), len(found))

    def best(self, scope: str, rows: np.ndarray, scores: np.ndarray, k: int) -> list[int]:
        """The k rows of highest score, of equal ones the smaller id."""
        if len(rows) > k:
            least = np.partition(scores, -k)[-k]
            surely, tied = rows[scores > least], rows[scores == least]
            if len(surely) + len(tied) > k:
                named = sorted(zip(self.ids(scope, tied.tolist()), tied.tolist(), strict=True))
                tied = np.array([row for _, row in named[: k - len(surely)]], np.int64)
            rows = np.concatenate([surely, tied])
        chosen: list[int] = rows.tolist()
        return chosen

    def consolidate(self, scope: str, *, at: float, weights: Weights = DEFAULT) -> Consolidated:
        """Merge near-duplicates, and archive what is forgotten. Nothing is deleted, and once is as good as twice.

        The longest text of near-duplicates stands for the others (see `change`): those whose vectors are nearer to its
        than `weights.merge_above`. What has faded below `weights.prune_below` is archived as well.
        """
        live = [episode for episode in self.scan(scope) if not episode.archived]
        kind = self.vectors()
        groups = (
            hybrid_scoring.duplicates(kind.quantiser, live, weights.merge_above) if kind and weights.merge_above else []
        )
        merged = {first.id: tuple(episode.id for episode in others) for first, *others in groups}
        gone = {id for others in merged.values() for id in others}
        forgotten = tuple(e.id for e in live if e.id not in gone and hybrid_scoring.faded(weights, e, at))
        if merged or forgotten:
            self.change(scope, merge=merged, archive=forgotten)
        return Consolidated(merged, forgotten)


def _cosines(kind: Vectors | None, query: np.ndarray | None, episodes: Mapping[int, Episode]) -> dict[int, float]:
    """The cosine of each, 0 for what has no vector."""
    cosines = dict.fromkeys(episodes, 0.0)
    holding = [row for row, episode in episodes.items() if episode.codes]
    if kind and query is not None and holding:
        quantiser = kind.quantiser
        matrix = quantiser.matrix([episodes[row].codes for row in holding])
        cosines |= zip(holding, quantiser.cosines(matrix, quantiser.norms(matrix), query).tolist(), strict=True)
    return cosines
