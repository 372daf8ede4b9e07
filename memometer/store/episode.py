"""The words of every store: what an episode is, what is found, what vectors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from memometer.errors import UserError
from memometer.store.quantise import Quantiser, quantiser


class StoreError(UserError, RuntimeError):
    """The store cannot do what is asked; the message is one sentence for the user."""


class Conflict(StoreError):
    """Another episode has the id already."""


@dataclass(frozen=True)
class Episode:
    """Something that happened. `id` is unique in its scope, `at` is when, `codes` its vector as `Quantiser` writes it
    (empty: it has none). `sources` are the ids of others that it stands for. Archived episodes are kept and
    not found."""

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
class Found:
    """An episode and how well it fits, the higher the better: `score` is the weighted sum of the others."""

    episode: Episode
    score: float
    lexical: float
    dense: float
    recency: float


@dataclass(frozen=True)
class Vectors:
    """What a store's vectors are. `encoder` is the name of what made them."""

    encoder: str
    dimensions: int
    bits: int

    @property
    def quantiser(self) -> Quantiser:
        return quantiser(self.dimensions, self.bits)

    def checked_against(self, known: Vectors | None) -> Vectors:
        """Itself, where a store has no vectors yet or these very ones; raises StoreError for others."""
        if self.quantiser and known in (None, self):
            return self
        raise StoreError(f"the store holds vectors of {known}, and was given those of {self}; use another store.")

    def __str__(self) -> str:
        return f"{self.encoder or 'an unnamed encoder'} ({self.dimensions} dimensions, {self.bits} bits)"


@dataclass(frozen=True)
class Size:
    """Of a scope: episodes that can be found, archived ones, the terms of the former, and a number (`changes`) that is
    another one after every change."""

    episodes: int = 0
    archived: int = 0
    terms: int = 0
    changes: int = 0


def same_as(known: Episode, given: Episode) -> None:
    """Raises Conflict where two episodes of one id are not of one text and time."""
    if (known.text, known.at) != (given.text, given.at):
        raise Conflict(f"episode {given.id!r} is stored already, with another text or time; give this one another id.")


def standing_for(episode: Episode, others: Sequence[Episode]) -> Episode:
    """An episode that stands for others beside what it stood for already."""
    sources = [*episode.sources, *(id for other in others for id in (other.id, *other.sources))]
    return replace(
        episode,
        importance=max(each.importance for each in (episode, *others)),
        uses=sum(each.uses for each in (episode, *others)),
        sources=tuple(dict.fromkeys(sources)),
    )
