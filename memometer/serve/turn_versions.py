"""Versions of a turn whose text was replaced. Former versions are archived episodes of the same scope."""

from __future__ import annotations

from dataclasses import replace

from memometer.memory import Turn
from memometer.models.encoders import Encoder
from memometer.serve.registry import AlreadyExists
from memometer.store import turn_conversion
from memometer.store.episode import VERSIONS, Episode
from memometer.store.protocol import Store

FORMER = "version_of"
"""The detail of a former version that names its turn."""


def is_former(episode: Episode) -> bool:
    """Return True for a former version of a turn."""
    return FORMER in episode.details


def former_ids(episode: Episode) -> list[str]:
    """Return the ids of the former versions of a turn, the oldest first."""
    return [f"{episode.id}~{number}" for number in range(1, int(episode.details.get(VERSIONS, 0)) + 1)]


def replace_text(
    store: Store, scope: str, known: Episode, turn: Turn, *, encoder: Encoder | None, expected: Episode | None
) -> Episode:
    """Replace a turn by one with the same id and another text, in one transaction; return it.

    Args:
        store: store to write.
        scope: scope of the turn.
        known: the turn, for what stays the same.
        turn: the new words.
        encoder: encodes the new text; None for no vector.
        expected: the turn as the caller has read it; None accepts any.

    Raises:
        AlreadyExists: the turn was changed meanwhile.
    """
    details = turn_conversion.episode_of(turn, int(known.details.get("n", 0))).details
    kept = {
        name: value for name, value in known.details.items() if name in ("role", VERSIONS) or name.startswith("meta.")
    }
    new = turn_conversion.episode_of(turn, 0, importance=known.importance)
    new = replace(new, at=known.at, uses=known.uses, sources=known.sources, details={**kept, **details})
    if encoder:
        (new,) = store.encoded([new], encoder([turn.header + turn.line]), encoder=encoder.name)
    with store.transaction():
        store.change(scope)  # locks the scope against other writers
        now = store.get(scope, [known.id])
        if not now or (now[0].text, now[0].archived) != ((expected or known).text, False):
            raise AlreadyExists(f"turn {known.id!r} was changed meanwhile; read it again.")
        number = int(now[0].details.get(VERSIONS, 0)) + 1
        former = {**now[0].details, FORMER: known.id}
        new = replace(new, details={**new.details, VERSIONS: number})
        store.delete(scope, [known.id])
        store.change(scope, add=[new, replace(now[0], id=f"{known.id}~{number}", archived=True, details=former)])
    return new
