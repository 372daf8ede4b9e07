"""The interface of all stores, and the search and consolidation that they share.

    with open_store("sqlite:///memory.db") as store:
        store.store_episode("agent-1", Episode("D1:3", "Nadia: I sold the kayak.", at=1714550400.0), vector)
        results = store.retrieve_similar("agent-1", "Who sold a kayak?", query_vector, k=10, at=1714636800.0)
        store.consolidate("agent-1", at=1714636800.0)

A back end stores episodes and answers exact queries: episodes by term, by vector, by time and by id. Ranking is
implemented once, here and in hybrid_scoring.py, so that all stores return the same results. Times are arguments in Unix
seconds; nothing here reads the clock.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from memometer.retrieval.bm25 import idf, saturation
from memometer.retrieval.tokenize import terms
from memometer.store import deadline, hybrid_scoring
from memometer.store.episode import Columns, Episode, ScopeSize, SearchResult, StoreError, VectorFormat
from memometer.store.episode import merged as merged_episode
from memometer.store.hybrid_scoring import DEFAULT, MAX_NEIGHBOUR_DISTANCE, Weights
from memometer.store.near_duplicates import has_decayed, near_duplicates

DEFAULT_BITS = 2
"""Bits per dimension in a new store. Half the size of 4 bits; with words and neighbours, the evidence recall on
LOCOMO is the same (benchmarks/stores.py)."""

CONSOLIDATIONS = "consolidations:"
"""The scope that holds, for each consolidated scope, the ids that were archived."""

MIN_CANDIDATES = 50
"""Least number of candidates from each of words, vectors and time."""

Postings = Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""For each term three arrays of equal length: the rows that contain it (ascending), its count in each, and the
number of terms of each."""


@dataclass(frozen=True)
class Change:
    """A change of a scope; see `Store.change`."""

    add: Sequence[Episode] = ()
    archive: Sequence[str] = ()
    uses: Mapping[str, int] = field(default_factory=dict)
    merge: Mapping[str, Sequence[str]] = field(default_factory=dict)
    restore: Sequence[str] = ()


@dataclass(frozen=True)
class Consolidated:
    """Result of `Store.consolidate`, as ids.

    Args:
        merged: each remaining episode with the episodes that were merged into it and archived.
        forgotten: episodes that were archived because their importance had decayed.
    """

    merged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    forgotten: tuple[str, ...] = ()


class Store(ABC):
    """Episodes by scope (an agent, a user or a conversation). Scopes are independent of each other.

    A row is the back end's own number of an episode. It is valid while the store is open.
    """

    default_bits = DEFAULT_BITS

    identity = ""
    """An id that the store keeps as long as it exists; empty if it has none."""

    # ------------------------------------------------------------ implemented by each back end

    @abstractmethod
    def vector_format(self) -> VectorFormat | None:
        """Return the format of the store's vectors; None before the first vector."""

    @abstractmethod
    def set_vector_format(self, vectors: VectorFormat) -> None:
        """Set the format of the store's vectors, once.

        Raises:
            StoreError: the store has another format already.
        """

    @abstractmethod
    def scopes(self) -> list[str]:
        """Return the names of all scopes that hold episodes, sorted."""

    @abstractmethod
    def size(self, scope: str) -> ScopeSize:
        """Return the size of a scope; zeros if it does not exist."""

    @abstractmethod
    def apply(self, scope: str, change: Change) -> list[bool]:
        """Apply a change in one transaction; see `change`."""

    @abstractmethod
    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        """Delete episodes permanently, archived ones included.

        Args:
            scope: scope to delete from.
            ids: ids to delete; None deletes all.

        Returns:
            The number of deleted episodes.
        """

    @abstractmethod
    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        """Return the episodes with these ids in the same order, archived ones included; unknown ids are skipped."""

    @abstractmethod
    def scan(self, scope: str) -> Iterator[Episode]:
        """Yield all episodes in insertion order, archived ones included."""

    @abstractmethod
    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        """Return the postings of terms in the searchable episodes; terms that do not occur are left out."""

    @abstractmethod
    def nearest(self, scope: str, query: np.ndarray, k: int) -> list[int]:
        """Return the rows of the k vectors with the highest cosine.

        Args:
            scope: scope to search.
            query: result of `Quantiser.query`, shape (dimensions,).
            k: number of rows. Ties are broken by the smaller id.
        """

    @abstractmethod
    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        """Return the rows of the k latest episodes, the latest first.

        Args:
            scope: scope to read.
            k: number of rows. Ties are broken by the smaller id.
            before: time and id of the last episode of the previous page. Pages stay complete while episodes are added
                and removed.
        """

    @abstractmethod
    def neighbours(self, scope: str, rows: np.ndarray, distance: int) -> np.ndarray:
        """Return for each row itself and the rows before and after it, in insertion order.

        Returns:
            Shape (rows, 2 * distance + 1); the row itself is in the middle, and -1 stands for no row.
        """

    @abstractmethod
    def columns(self, scope: str, rows: np.ndarray, query: np.ndarray | None, *, uses: bool = False) -> Columns:
        """Return the values of rows that ranking needs.

        Args:
            scope: scope to read.
            rows: rows that are not archived, ascending.
            query: result of `Quantiser.query`; None for no cosines.
            uses: whether the numbers of uses are needed; without, they may be 0.
        """

    @abstractmethod
    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        """Return the id of each row."""

    def snapshot(self) -> AbstractContextManager[None]:
        """Read from a single snapshot, if the back end supports it."""
        return nullcontext()

    def transaction(self) -> AbstractContextManager[None]:
        """Write everything or nothing, if the back end supports it."""
        return nullcontext()

    def replace(self, scope: str, episode: Episode) -> Episode | None:
        """Replace the episode that has the same id, or add it, in one transaction.

        Returns:
            The previous episode; None if there was none.
        """
        with self.transaction():
            self.change(scope)  # locks the scope against other writers
            old = self.get(scope, [episode.id])
            self.delete(scope, [episode.id])
            self.change(scope, add=[episode])
        return old[0] if old else None

    def compact(self) -> None:  # noqa: B027  # most back ends need none
        """Reduce disk use and rebuild derived data. Search results stay the same."""

    def erase(self) -> None:  # noqa: B027  # most back ends need none
        """Remove what deleted episodes may have left in files. It can take seconds in a large store."""

    def check(self) -> list[str]:
        """Compare index and counts with the texts and return the problems; an empty list if there are none."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Close the store. It cannot be used afterwards."""

    # ------------------------------------------------------------ shared by all back ends

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def change(
        self,
        scope: str,
        add: Sequence[Episode] = (),
        archive: Sequence[str] = (),
        uses: Mapping[str, int] | None = None,
        merge: Mapping[str, Sequence[str]] | None = None,
        restore: Sequence[str] = (),
    ) -> list[bool]:
        """Add, archive, restore, count and merge in one transaction, which is durable when this returns.

        Args:
            scope: scope to change; it is created if it does not exist.
            add: episodes to add. An id that exists already is skipped, and restored if it is archived.
            archive: ids of episodes to archive.
            restore: ids of archived episodes that searches shall find again.
            uses: further uses by id.
            merge: for each id the ids to merge into it. Merged episodes are archived. The remaining one gains their
                ids, sources and uses, and takes the highest importance. Archived and unknown ids are skipped.

        Returns:
            For each episode of `add`, True if it is new.

        Raises:
            Conflict: an id of `add` belongs to an episode with another text or time. Nothing is changed.
        """
        return self.apply(scope, Change(add, archive, uses or {}, merge or {}, restore))

    def store_episode(self, scope: str, episode: Episode, vector: np.ndarray | None = None) -> bool:
        """Store one episode durably; see `store_episodes`.

        Args:
            scope: scope to add to.
            episode: the episode.
            vector: shape (dimensions,); None keeps `episode.codes`.

        Returns:
            True if the episode is new.

        Raises:
            Conflict: the id belongs to an episode with another text or time.
        """
        return self.store_episodes(scope, [episode], None if vector is None else np.atleast_2d(vector))[0]

    def store_episodes(
        self, scope: str, episodes: Sequence[Episode], vectors: np.ndarray | None = None, *, encoder: str = ""
    ) -> list[bool]:
        """Store episodes in one transaction, which is durable when this returns.

        Args:
            scope: scope to add to.
            episodes: the episodes. An id that exists already is skipped.
            vectors: shape (episodes, dimensions); None keeps each episode's `codes`.
            encoder: name of the encoder of the vectors. A store accepts one encoder.

        Returns:
            For each episode, True if it is new.

        Raises:
            Conflict: an id belongs to an episode with another text or time. Nothing is stored.
            StoreError: the vectors have another format than the store.
        """
        return self.change(scope, add=episodes if vectors is None else self.encoded(episodes, vectors, encoder=encoder))

    def encoded(self, episodes: Sequence[Episode], vectors: np.ndarray, *, encoder: str = "") -> list[Episode]:
        """Return the episodes with the quantised codes of their vectors; arguments as in `store_episodes`."""
        kind = self.vector_format()
        if kind is None or (encoder and kind.encoder != encoder) or kind.dimensions != vectors.shape[1]:
            kind = VectorFormat(encoder, vectors.shape[1], kind.bits if kind else self.default_bits)
            self.set_vector_format(kind)
        if len(vectors) != len(episodes):
            raise StoreError(
                f"the encoder returned {len(vectors)} vectors for {len(episodes)} texts; nothing was stored."
            )
        codes = kind.quantiser.encode(vectors)
        return [replace(e, codes=row.tobytes()) for e, row in zip(episodes, codes, strict=True)]

    def record_uses(self, scope: str, ids: Sequence[str]) -> None:
        """Count one use of an episode for each occurrence of its id."""
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
        encoder: str = "",
        until: float | None = None,
    ) -> list[SearchResult]:
        """Return the k best episodes for a question, the best first. Nothing is written.

        The candidates are the best max(50, 2 k) by words, by vector and, if it counts, by time, with their neighbours.

        Args:
            scope: scope to search.
            question: query text.
            vector: the question's vector, shape (dimensions,); None searches by words.
            k: number of results; fewer only if the scope holds fewer. Ties are broken by the smaller id.
            at: time of the question, in Unix seconds.
            weights: weights of the signals.
            encoder: name of the encoder of `vector`; empty if it is not known.
            until: leave out episodes that are later, in Unix seconds; None leaves out none. It compares all episodes.

        Raises:
            StoreError: the vector is from another encoder than those of the store.
        """
        with self.snapshot():
            pool = max(MIN_CANDIDATES, 2 * k, 0 if until is None else self.size(scope).episodes)
            bm25_rows, bm25 = self._bm25(scope, question)
            found = [self.top_rows(scope, bm25_rows, bm25, pool)]
            kind = self.vector_format()
            query = None
            if kind and vector is not None:
                kind.check_question(vector, encoder)
                query = kind.quantiser.query(vector)
            if query is not None:
                found.append(self.nearest(scope, query, pool))
            rows = np.unique(np.array([row for part in found for row in part], np.int64))
            if weights.uses_time or len(rows) < k:
                rows = np.union1d(rows, np.array(self.newest(scope, pool), np.int64))
            windows = None
            if weights.neighbours:
                around = self.neighbours(scope, rows, MAX_NEIGHBOUR_DISTANCE)
                rows = np.unique(around[around >= 0])
                windows = self.neighbours(scope, rows, MAX_NEIGHBOUR_DISTANCE)
            deadline.check()
            columns = self.columns(scope, rows, query, uses=weights.use > 0)
            if until is not None and (columns.at > until).any():
                rows = rows[columns.at <= until]
                columns = self.columns(scope, rows, query, uses=weights.use > 0)
                windows = None if windows is None else self.neighbours(scope, rows, MAX_NEIGHBOUR_DISTANCE)
            lexical = _aligned(rows, bm25_rows, bm25 / max(bm25.max(initial=0.0), 1e-30))
            scores = hybrid_scoring.scores(columns, weights, at, lexical=lexical, windows=windows)
            best = np.searchsorted(rows, np.sort(np.array(self.top_rows(scope, rows, scores, k), np.int64)))
            ids = self.ids(scope, rows[best].tolist())
            order = sorted(range(len(best)), key=lambda n: (-scores[best[n]], ids[n]))
            whole = {episode.id: episode for episode in self.get(scope, ids)}
        return [
            SearchResult(
                whole[ids[n]],
                float(scores[best[n]]),
                float(lexical[best[n]]),
                float(columns.dense[best[n]]),
                hybrid_scoring.recency(float(columns.at[best[n]]), at, weights),
            )
            for n in order
        ]

    def _bm25(self, scope: str, question: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that contain a term of the question, and their scores."""
        size = self.size(scope)
        query = sorted(set(terms(question))) if size.episodes else []
        postings = self.postings(scope, query)
        rows, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
        for term in query:
            if term in postings:
                holding, counts, lengths = postings[term]
                rows.append(holding)
                mean_length = max(1, size.terms) / size.episodes
                scores.append(idf(size.episodes, len(holding)) * saturation(counts, lengths, mean_length))
        distinct, position = np.unique(np.concatenate(rows), return_inverse=True)
        return distinct, np.bincount(position, np.concatenate(scores), len(distinct))

    def top_rows(self, scope: str, rows: np.ndarray, scores: np.ndarray, k: int) -> list[int]:
        """Return the k rows with the highest score. Ties are broken by the smaller id."""
        if len(rows) > k:
            least = np.partition(scores, -k)[-k]
            above, tied = rows[scores > least], rows[scores == least]
            if len(above) + len(tied) > k:
                by_id = sorted(zip(self.ids(scope, tied.tolist()), tied.tolist(), strict=True))
                tied = np.array([row for _, row in by_id[: k - len(above)]], np.int64)
            rows = np.concatenate([above, tied])
        chosen: list[int] = rows.tolist()
        return chosen

    def consolidate(self, scope: str, *, at: float, weights: Weights = DEFAULT, dry_run: bool = False) -> Consolidated:
        """Merge near-duplicates and archive decayed episodes. Nothing is deleted; a second call changes nothing.

        Args:
            scope: scope to consolidate.
            at: present time, in Unix seconds.
            weights: `merge_above` and the `prune_…` fields are used. The longest text of near-duplicates remains.
            dry_run: change nothing.
        """
        live = [episode for episode in self.scan(scope) if not episode.archived]
        kind = self.vector_format()
        groups = near_duplicates(kind.quantiser, live, weights.merge_above) if kind and weights.merge_above else []
        groups = [group for group in groups if not has_decayed(weights, merged_episode(group[0], group[1:]), at)]
        merged = {first.id: tuple(episode.id for episode in others) for first, *others in groups}
        gone = {id for others in merged.values() for id in others}
        forgotten = tuple(e.id for e in live if e.id not in {*gone, *merged} and has_decayed(weights, e, at))
        if (merged or forgotten) and not dry_run:
            ids = json.dumps([*gone, *forgotten])
            with self.transaction():
                self.change(scope, merge=merged, archive=forgotten)
                self.replace(CONSOLIDATIONS, Episode(scope, "", at, details={"archived": ids}))
        return Consolidated(merged, forgotten)

    def undo_consolidation(self, scope: str) -> list[str]:
        """Restore what the last consolidation of a scope archived; return the ids.

        Remaining episodes keep the sources and uses that they gained.
        """
        with self.transaction():
            known = self.get(CONSOLIDATIONS, [scope])
            ids: list[str] = json.loads(str(known[0].details["archived"])) if known else []
            back = [episode.id for episode in self.get(scope, ids) if episode.archived]
            if known:
                self.change(scope, restore=back)
                self.delete(CONSOLIDATIONS, [scope])
        return back


def _aligned(rows: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the value of each row; 0 for rows that are not known. Both arrays of rows are ascending."""
    aligned = np.zeros(len(rows))
    shared, places, positions = np.intersect1d(rows, known, assume_unique=True, return_indices=True)
    del shared
    aligned[places] = values[positions]
    return aligned
