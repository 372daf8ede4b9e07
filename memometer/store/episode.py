"""Data types that all stores share: episodes, search results, vector formats and scope sizes."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from memometer.errors import UserError
from memometer.store.quantise import Quantiser, quantiser

VERSIONS = "versions"
"""The detail that counts how often the text of an episode was replaced."""


class StoreError(UserError, RuntimeError):
    """A store operation failed. The message is meant for the user."""


class Conflict(StoreError):
    """The id already belongs to an episode with another text or time."""


@dataclass(frozen=True)
class Episode:
    """One stored event, usually a turn of a conversation.

    Args:
        id: unique within its scope.
        text: searchable text.
        at: time of the event, in Unix seconds.
        importance: weight for ranking and forgetting, usually from 0 to 1.
        uses: how often the episode was used.
        codes: the quantised vector (`Quantiser.encode`); empty if there is none.
        sources: ids of the episodes that were merged into this one.
        archived: archived episodes are kept but never found by a search.
        details: further values as JSON can hold them.
    """

    id: str
    text: str
    at: float
    importance: float = 0.5
    uses: int = 0
    codes: bytes = b""
    sources: tuple[str, ...] = ()
    archived: bool = False
    details: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchResult:
    """An episode with its scores; higher is better.

    Args:
        episode: the episode.
        score: weighted sum of all signals.
        lexical: BM25 as a share of the best score in the scope, from 0 to 1.
        dense: cosine of the vectors, from -1 to 1; 0 without a vector.
        recency: exponential decay with age, from 0 to 1.
    """

    episode: Episode
    score: float
    lexical: float
    dense: float
    recency: float


@dataclass(frozen=True)
class Columns:
    """Values of episodes that ranking needs, one array element per episode.

    Args:
        rows: rows, ascending.
        at: times, in Unix seconds.
        importance: importance.
        uses: numbers of uses.
        dense: cosine with the question's vector; 0 without a vector.
    """

    rows: np.ndarray
    at: np.ndarray
    importance: np.ndarray
    uses: np.ndarray
    dense: np.ndarray

    @classmethod
    def of(
        cls, rows: Sequence[int], episodes: Sequence[Episode], kind: VectorFormat | None, query: np.ndarray | None
    ) -> Self:
        """Collect the columns of episodes.

        Args:
            rows: row of each episode, ascending.
            episodes: the episodes; their texts are not used.
            kind: format of the vectors.
            query: result of `Quantiser.query`; None for no cosines.
        """
        dense = np.zeros(len(rows))
        encoded = [n for n, episode in enumerate(episodes) if episode.codes]
        if kind and query is not None and encoded:
            matrix = kind.quantiser.matrix([episodes[n].codes for n in encoded])
            dense[encoded] = kind.quantiser.cosines(matrix, kind.quantiser.norms(matrix), query)
        values = ((e.at, e.importance, e.uses) for e in episodes)
        at, importance, uses = np.array(list(values), float).reshape(-1, 3).T
        return cls(np.array(rows, np.int64), at, importance, uses, dense)


@dataclass(frozen=True)
class VectorFormat:
    """Format of a store's vectors: the encoder's name, the number of dimensions, and bits per dimension (2 or 4)."""

    encoder: str
    dimensions: int
    bits: int

    @property
    def quantiser(self) -> Quantiser:
        return quantiser(self.dimensions, self.bits)

    def check_compatible(self, known: VectorFormat | None) -> None:
        """Raise StoreError if the store already has another format, ValueError if this one is invalid."""
        if self.quantiser and known not in (None, self):
            raise StoreError(f"the store holds vectors of {known} and cannot take those of {self}; use another store.")

    def check_question(self, vector: np.ndarray, encoder: str) -> None:
        """Raise StoreError if a question's vector is from another encoder; an empty name is not compared."""
        if vector.shape[-1] != self.dimensions or (encoder and self.encoder and encoder != self.encoder):
            asked = f"{encoder or 'an unnamed encoder'} ({vector.shape[-1]} dimensions)"
            raise StoreError(
                f"the store holds vectors of {self} and cannot be searched with {asked}; name its encoder."
            )

    def __str__(self) -> str:
        return f"{self.encoder or 'an unnamed encoder'} ({self.dimensions} dimensions, {self.bits} bits)"


@dataclass(frozen=True)
class ScopeSize:
    """Size of a scope.

    Args:
        episodes: number of episodes that a search can find.
        archived: number of archived episodes.
        terms: number of terms in the searchable episodes.
        changes: a number that differs after every change of the scope and, except in `memory:`, between stores.
    """

    episodes: int = 0
    archived: int = 0
    terms: int = 0
    changes: int = 0


def change_mark() -> int:
    """Return a random number for a changed scope.

    A counter would be the same again in a restored backup or in another store, and a cache would answer for the wrong
    one.
    """
    return 1 + secrets.randbelow(2**53)


def check_same(known: Episode, given: Episode) -> None:
    """Raise Conflict if two episodes with one id differ in text or time."""
    if (known.text, known.at) != (given.text, given.at):
        raise Conflict(f"episode {given.id!r} already exists with another text or time; use another id.")


def merged(episode: Episode, others: Sequence[Episode]) -> Episode:
    """Return the episode after merging others into it: their ids, sources and uses, and the highest importance."""
    sources = [*episode.sources, *(id for other in others for id in (other.id, *other.sources))]
    return replace(
        episode,
        importance=max(each.importance for each in (episode, *others)),
        uses=sum(each.uses for each in (episode, *others)),
        sources=tuple(dict.fromkeys(sources)),
    )
