"""Sentences about faults of a data file: file, conversation, turn or question, field, and what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

MAX_SHOWN = 80
"""Characters of a value that a message quotes."""

EXPECTED = {
    "id": "text or a whole number",
    "speakers": "a list of names",
    "turns": "a list of turns",
    "questions": "a list of questions",
    "conversations": "a list of conversations",
    "evidence": 'a list of turn ids, such as ["t1", "t7"]',
    "answer": "text or a number; several right answers go into `answers`",
    "answers": "a list of texts or numbers, at least one",
    "category": "text or a whole number",
    "session": "text or a whole number",
    "unanswerable": "true or false",
    "time": "an ISO 8601 time in text, such as 2024-03-03T18:12:00",
}
_NO_DETAIL = {"int_type", "string_type", "float_type", "bool_type", "list_type", "model_type", "dict_type"}


def kind(value: Any) -> str:
    """A JSON value in words, such as `a list` or `the number 3`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"[:MAX_SHOWN]
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    return "a list" if isinstance(value, list) else "an object"


def quoted(value: str) -> str:
    """A value between quotation marks on one line, cut if it is long."""
    text = value.encode("utf-8", "replace").decode()
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")


def sentences(error: ValidationError, entry: Any, names: Mapping[str, str]) -> list[str]:
    """One sentence per faulty field, without the conversation.

    Args:
        error: What the types of `schema` found.
        entry: The conversation that they checked.
        names: Field -> its name in the file's shape (`locomo_shape.NAMES`).
    """
    found: dict[tuple[Any, ...], str] = {}
    for one in error.errors(include_url=False, include_context=False):
        place = _field_of(one["loc"])
        problem = _problem(one, place)
        if place not in found or one["type"] not in _NO_DETAIL:
            found[place] = problem
    return [f"{_place(place, entry)}{_name(place, names)} {problem}" for place, problem in found.items()]


def _field_of(location: Sequence[int | str]) -> tuple[int | str, ...]:
    """The part of a location that names a field; the rest names alternatives of a union."""
    place: list[int | str] = []
    for part in location:
        if isinstance(part, int) or (part in _FIELDS and (not place or isinstance(place[-1], int))):
            place.append(part)
    return tuple(place)


_FIELDS = {
    "id", "speakers", "turns", "questions", "conversations", "name", "licence", "speaker", "text", "time", "caption",
    "role", "session", "answer", "answers", "unanswerable", "wrong_answer", "evidence", "category",
}  # fmt: skip


def _problem(one: Mapping[str, Any], place: tuple[int | str, ...]) -> str:
    if one["type"] == "missing":
        return "is missing"
    if one["type"] in ("blank", "one_line", "surrogate"):
        return str(one["msg"])
    if one["type"] == "string_too_long":
        return f"has {len(one['input']):,} characters; at most 10,000 are allowed"
    if one["type"] == "too_short":
        return "is empty; at least one is needed"
    if one["type"] == "finite_number":
        return "is not a finite number"
    field = next((part for part in reversed(place) if isinstance(part, str)), "")
    if place and isinstance(place[-1], int):  # an item of a list
        expected = "an object" if field in ("turns", "questions", "conversations") else "text"
    else:
        expected = EXPECTED.get(field, "text")
    return f"is {kind(one['input'])}; expected {expected}"


def _place(place: tuple[int | str, ...], entry: Any) -> str:
    """`turn 3 (t4), ` or `question 0 (q1), `; empty for a field of the conversation."""
    if len(place) < 2 or place[0] not in ("turns", "questions") or not isinstance(place[1], int):
        return ""
    name = str(place[0]).removesuffix("s")
    item = entry[place[0]][place[1]]
    return place_of(name, place[1], item.get("id") if isinstance(item, Mapping) else None) + ", "


def place_of(name: str, position: int, id: Any = None) -> str:
    """`question 3 (q4)`: the position from 0 and the id, if there is a usable one."""
    return f"{name} {position}" + (f" ({str(id)[:40]})" if isinstance(id, str | int) and str(id).isprintable() else "")


def _name(place: tuple[int | str, ...], names: Mapping[str, str]) -> str:
    """The name of a field in the file's shape, with the position of an item in its list."""
    if len(place) == 2 and isinstance(place[1], int) and place[0] in ("turns", "questions"):
        return "it"
    fields = [str(part) for part in place if isinstance(part, str)]
    name = names.get(".".join(fields), names.get(fields[-1], fields[-1]) if len(fields) == 1 else fields[-1])
    return f"{name}[{place[-1]}]" if place and isinstance(place[-1], int) else name
