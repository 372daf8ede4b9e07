"""Conversion between turns and episodes, and observing and recalling turns with a store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import groupby

import numpy as np

from memometer.budget import pack
from memometer.memory import Recall, State, Turn, TurnFormat
from memometer.models.encoders import Encoder
from memometer.store.episode import Episode
from memometer.store.hybrid_scoring import DEFAULT, Weights
from memometer.store.protocol import Store
from memometer.token_counters import TokenCounter

MIN_EPISODES = 100
"""Least number of episodes to retrieve. With large budgets it is one per four tokens, because few lines are shorter."""

_META = "meta."

Details = Mapping[str, str | int | float]


def episode_of(turn: Turn, number: int, *, importance: float = 0.5) -> Episode:
    """Convert a turn to an episode.

    The text is the turn's line. The details hold what line and time do not determine.

    Args:
        turn: the turn.
        number: position in its scope, from 0.
        importance: the episode's importance.
    """
    line = turn.line.rstrip("\n")
    details: dict[str, str | int | float] = {"n": number, "session": turn.session}
    if (offset := turn.said_at.utcoffset()) is not None:
        details["offset"] = offset.total_seconds()
    for name, value in (("caption", turn.caption), ("role", turn.role)):
        if value is not None:
            details[name] = value
    if turn.audience is not None:
        details["audience"] = json.dumps(turn.audience)
    for name, value in (("speaker", turn.speaker), ("text", turn.text)):
        if _speaker_and_text(line, details)[name] != value:
            details[name] = value
    return Episode(turn.id, line, at_of(turn), importance, details=details)


def metadata_of(episode: Episode) -> Details:
    """Return the values that the user gave with a turn."""
    return {name.removeprefix(_META): value for name, value in episode.details.items() if name.startswith(_META)}


def at_of(turn: Turn) -> float:
    """Return the time of a turn in Unix seconds; a time without a zone counts as UTC."""
    return turn.said_at.replace(tzinfo=turn.said_at.tzinfo or UTC).timestamp()


def turn_of(episode: Episode) -> Turn:
    """Convert an episode back to its turn."""
    details = episode.details
    caption, role, audience = details.get("caption"), details.get("role"), details.get("audience")
    speaker, text = _speaker_and_text(episode.text, details).values()
    return Turn(
        episode.id,
        speaker,
        text,
        session=int(details.get("session", 0)),
        said_at=_said_at(episode),
        caption=None if caption is None else str(caption),
        role=None if role is None else str(role),
        audience=None if audience is None else tuple(json.loads(str(audience))),
    )


def observe(store: Store, scope: str, turns: Sequence[Turn], *, encoder: Encoder, number: int) -> list[Turn]:
    """Store turns durably. Known turns are skipped, so that a call can be repeated after a crash.

    Args:
        store: store to write.
        scope: scope to add to.
        turns: turns in time order.
        encoder: encodes the turns.
        number: position of the first new turn in the scope.

    Returns:
        The turns that were new.
    """
    known = {episode.id for episode in store.get(scope, [turn.id for turn in turns])}
    new = [turn for turn in turns if turn.id not in known]
    store_new(store, scope, new, encoder=encoder, number=number)
    return new


def store_new(
    store: Store,
    scope: str,
    turns: Sequence[Turn],
    *,
    encoder: Encoder | None,
    number: int | None = None,
    importance: float = 0.5,
    metadata: Mapping[str, Details] | None = None,
) -> None:
    """Store turns that are not in the scope yet.

    Args:
        store: store to write.
        scope: scope to add to.
        turns: turns in time order.
        encoder: encodes the turns; None stores them without vectors.
        number: position of the first turn in the scope; None for the next free one.
        importance: importance of the episodes.
        metadata: further values by turn id, which `metadata_of` returns.

    Raises:
        Conflict: an id belongs to another text or time.
    """
    if number is None:
        size = store.size(scope)
        number = size.episodes + size.archived
    # One batch per session: the last bits of a vector depend on its batch.
    for _, group in groupby(turns, key=lambda turn: turn.session):
        session = list(group)
        episodes = [episode_of(turn, number + n, importance=importance) for n, turn in enumerate(session)]
        if metadata:
            episodes = [
                replace(e, details={**e.details, **{_META + k: v for k, v in metadata.get(e.id, {}).items()}})
                for e in episodes
            ]
        vectors = encoder([turn.header + turn.line for turn in session]) if encoder else None
        store.store_episodes(scope, episodes, vectors, encoder=encoder.name if encoder else "")
        number += len(session)


def recall(
    store: Store,
    scope: str,
    question: str,
    budget_tokens: int,
    *,
    encoder: Encoder | None,
    count: TokenCounter,
    weights: Weights = DEFAULT,
    at: float | None = None,
    form: TurnFormat | None = None,
) -> Recall:
    """Retrieve the best episodes for a question and pack them into a token budget.

    Args:
        store: store to read.
        scope: scope to search.
        question: query text.
        budget_tokens: limit for the text, counted by `count`.
        encoder: encodes the question; None searches by words.
        count: token counter.
        weights: weights of the signals.
        at: time of the question in Unix seconds, which excludes later episodes; None for the time of the newest one.
        form: format of the turns; None for lines.
    """
    if not store.size(scope).episodes:
        return Recall()
    vector = encoder([question])[0] if encoder else None
    with store.snapshot():
        newest = store.newest(scope, 1)
        if not newest:
            return Recall()
        latest = float(store.columns(scope, np.array(newest), None).at[0])
        found = store.retrieve_similar(
            scope,
            question,
            vector,
            max(MIN_EPISODES, budget_tokens // 4),
            at=latest if at is None else at,
            weights=weights,
            encoder=encoder.name if encoder else "",
            until=at,
        )
    shown = in_time_order(hit.episode for hit in found)
    places = {episode.id: place for place, episode in enumerate(shown)}
    ranking = (places[hit.episode.id] for hit in found)
    return pack(_state_of(shown, count), ranking, budget_tokens, count, question=question, form=form)


def in_time_order(known: Iterable[Episode]) -> list[Episode]:
    """Sort episodes by time; those of the same time in the order of observation."""
    return sorted(known, key=lambda episode: (episode.at, episode.details.get("n", 0), episode.id))


def _state_of(episodes: Sequence[Episode], count: TokenCounter) -> State:
    """Build a state for `pack` from episodes in time order."""
    state = State()
    for episode in episodes:
        session = int(episode.details.get("session", 0))
        turn = Turn(episode.id, "", "", session, _said_at(episode))
        line = " ".join(episode.text.split()) + "\n"  # a text of several lines could forge dates and speakers
        state.turns.append(turn)
        state.lines.append(line)
        state.line_tokens.append(count(line))
        if turn.day not in state.header_tokens:
            state.header_tokens[turn.day] = count(turn.header)
    state.least_line_tokens = min(state.line_tokens, default=0)
    return state


def _speaker_and_text(line: str, details: Details) -> dict[str, str]:
    """Return speaker and text, from the line unless the details hold them."""
    speaker = str(details.get("speaker", line.partition(": ")[0]))
    text = line.removeprefix(speaker).removeprefix(":").removeprefix(" ")
    if details.get("caption"):
        text = text.removesuffix(f" [image: {' '.join(str(details['caption']).split())}]")
    return {"speaker": speaker, "text": str(details.get("text", text))}


def _said_at(episode: Episode) -> datetime:
    """Return the local time of a turn, without a zone if it had none."""
    offset = episode.details.get("offset")
    if offset is None:
        return datetime.fromtimestamp(episode.at, UTC).replace(tzinfo=None)
    return datetime.fromtimestamp(episode.at, timezone(timedelta(seconds=float(offset))))
