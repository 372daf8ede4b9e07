"""Turns and episodes as the rows of a cartridge: what JSON can hold, each field by name, checked when it is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import datetime
from typing import Any

from memometer.cartridge.container import CartridgeError
from memometer.memory import Turn
from memometer.store.episode import Episode
from memometer.store.turn_conversion import turn_of

Row = dict[str, Any]

_TURN = {"id": str, "speaker": str, "text": str, "session": int, "said_at": str, "line": str}
_EPISODE = {
    "id": str, "text": str, "at": float, "importance": float, "uses": int, "archived": bool, "sources": list,
    "details": dict, "vector": bool,
}  # fmt: skip


def of_turn(turn: Turn, line: str) -> Row:
    """A turn beside the line that shows it."""
    row = {
        "id": turn.id,
        "speaker": turn.speaker,
        "text": turn.text,
        "session": turn.session,
        "said_at": turn.said_at.isoformat(),
        "line": line,
    }
    return row if turn.caption is None else {**row, "caption": turn.caption}


def turn(row: Any) -> tuple[Turn, str]:
    """The turn, and its line. Raises CartridgeError."""
    caption = row.pop("caption", None) if isinstance(row, dict) else None
    _check(row, _TURN)
    if caption is not None and type(caption) is not str:
        raise CartridgeError("a turn of it has a caption that is no text")
    try:
        said_at = datetime.fromisoformat(row["said_at"])
    except ValueError as error:
        raise CartridgeError(f"a turn of it has no time that can be read ({error})") from error
    return Turn(row["id"], row["speaker"], row["text"], row["session"], said_at, caption), row["line"]


def of_episode(episode: Episode) -> Row:
    """An episode without its vector, which stands elsewhere; `vector` says whether it has one."""
    row = {field.name: getattr(episode, field.name) for field in fields(episode) if field.name != "codes"}
    row["at"], row["importance"] = float(episode.at), float(episode.importance)
    return {**row, "sources": list(episode.sources), "details": dict(episode.details), "vector": bool(episode.codes)}


def episodes(rows: Iterable[Any], vectors: Iterator[bytes]) -> Iterator[Episode]:
    """The episodes, each that has one with the next of the vectors. Raises CartridgeError."""
    for row in rows:
        _check(row, _EPISODE)
        has_vector = row.pop("vector")
        if not all(type(source) is str for source in row["sources"]):
            raise CartridgeError("an episode of it has sources that are no text")
        if not all(type(value) in (str, int, float) for value in row["details"].values()):
            raise CartridgeError("an episode of it has details that are no text or number")
        codes = next(vectors, None) if has_vector else b""
        if codes is None:
            raise CartridgeError("it has fewer vectors than its records say")
        episode = Episode(**{**row, "sources": tuple(row["sources"]), "codes": codes})
        if not math.isfinite(episode.at + episode.importance) or episode.uses < 0:
            raise CartridgeError("an episode of it has numbers that no episode has")
        turn_of(episode)  # raises what is not a time, or not a session
        yield episode
    if next(vectors, None) is not None:
        raise CartridgeError("it has more vectors than its records say")


def _check(row: Any, types: dict[str, type]) -> None:
    if not isinstance(row, dict) or row.keys() != types.keys():
        raise CartridgeError("a record of it has other fields than a record has")
    for name, kind in types.items():
        if type(row[name]) is not kind:
            raise CartridgeError(f"a record of it has a {name} that is no {kind.__name__}")
