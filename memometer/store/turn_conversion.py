"""Turns as episodes of a store, and episodes as turns again: what `Episodic` and all that serves memory share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from itertools import groupby

from memometer.budget import Form, Recall, State, TokenCounter, Turn, pack
from memometer.models.encoders import Encoder
from memometer.store.episode import Episode
from memometer.store.hybrid_scoring import DEFAULT, Weights
from memometer.store.protocol import Store

LEAST_LINES = 100
"""At least so many episodes are asked for, and one for each four tokens of the budget: few lines are shorter."""


Details = Mapping[str, str | int | float]


def episode_of(turn: Turn, number: int, *, importance: float = 0.5) -> Episode:
    """A turn as it is stored: its line is what is found, its details whatever the line and the time do not say."""
    line = turn.line.rstrip("\n")
    details: dict[str, str | int | float] = {"n": number, "session": turn.session}
    if (offset := turn.said_at.utcoffset()) is not None:
        details["offset"] = offset.total_seconds()
    if turn.caption is not None:
        details["caption"] = turn.caption
    for name, value in (("speaker", turn.speaker), ("text", turn.text)):
        if _said(line, details)[name] != value:
            details[name] = value
    return Episode(turn.id, line, at_of(turn), importance, details=details)


def at_of(turn: Turn) -> float:
    """When a turn was said, in Unix seconds; a time without a zone is in UTC."""
    return turn.said_at.replace(tzinfo=turn.said_at.tzinfo or UTC).timestamp()


def turn_of(episode: Episode) -> Turn:
    """The turn that an episode was made of."""
    details = episode.details
    caption = details.get("caption")
    return Turn(
        episode.id,
        **_said(episode.text, details),
        session=int(details.get("session", 0)),
        said_at=_said_at(episode),
        caption=None if caption is None else str(caption),
    )


def observe(
    store: Store, scope: str, turns: Sequence[Turn], *, encoder: Encoder, number: int, importance: float = 0.5
) -> list[Turn]:
    """Store turns, in time order, numbered from `number`; they are there when it returns. Those that were new.

    A turn that is known already is passed over, so that after a crash all can be repeated.
    """
    known = {episode.id for episode in store.get(scope, [turn.id for turn in turns])}
    new = [turn for turn in turns if turn.id not in known]
    # Session by session, because the last bits of a vector depend on what is encoded with it.
    for _, session in groupby(new, key=lambda turn: turn.session):
        said = list(session)
        episodes = [episode_of(turn, number + n, importance=importance) for n, turn in enumerate(said)]
        vectors = encoder([turn.header + turn.line for turn in said])
        store.store_episodes(scope, episodes, vectors, encoder=encoder.name)
        number += len(said)
    return new


def recall(
    store: Store,
    scope: str,
    question: str,
    budget_tokens: int,
    *,
    encoder: Encoder,
    count: TokenCounter,
    weights: Weights = DEFAULT,
    at: float | None = None,
    form: Form | None = None,
) -> Recall:
    """What to show for a question, at some time (Unix seconds); None asks at the time of the newest episode."""
    if not store.size(scope).episodes:
        return Recall()
    vector = encoder([question])[0]
    with store.reading():
        newest = store.rows(scope, store.newest(scope, 1))
        if not newest:
            return Recall()
        found = store.retrieve_similar(
            scope,
            question,
            vector,
            max(LEAST_LINES, budget_tokens // 4),
            at=next(iter(newest.values())).at if at is None else at,
            weights=weights,
        )
    shown = in_time_order(hit.episode for hit in found)
    places = {episode.id: place for place, episode in enumerate(shown)}
    ranking = (places[hit.episode.id] for hit in found)
    return pack(_printed(shown, count), ranking, budget_tokens, count, form=form)


def in_time_order(known: Iterable[Episode]) -> list[Episode]:
    """Episodes by their time; those of one time as they were observed."""
    return sorted(known, key=lambda episode: (episode.at, episode.details.get("n", 0), episode.id))


def _printed(episodes: Sequence[Episode], count: TokenCounter) -> State:
    """Episodes in time order as `pack` takes them."""
    state = State()
    for episode in episodes:
        session = int(episode.details.get("session", 0))
        turn = Turn(episode.id, "", "", session, _said_at(episode))
        line = episode.text + "\n"
        state.turns.append(turn)
        state.lines.append(line)
        state.line_tokens.append(count(line))
        if session not in state.header_tokens:
            state.header_tokens[session] = count(turn.header)
    state.least_line_tokens = min(state.line_tokens, default=0)
    return state


def _said(line: str, details: Details) -> dict[str, str]:
    """Speaker and text, where the details do not name them as the line does."""
    speaker = str(details.get("speaker", line.partition(": ")[0]))
    text = line.removeprefix(speaker).removeprefix(":").removeprefix(" ")
    if details.get("caption"):
        text = text.removesuffix(f" [image: {' '.join(str(details['caption']).split())}]")
    return {"speaker": speaker, "text": str(details.get("text", text))}


def _said_at(episode: Episode) -> datetime:
    """Where the one who spoke was; without a zone, where none was given."""
    offset = episode.details.get("offset")
    if offset is None:
        return datetime.fromtimestamp(episode.at, UTC).replace(tzinfo=None)
    return datetime.fromtimestamp(episode.at, timezone(timedelta(seconds=float(offset))))
