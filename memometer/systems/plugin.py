"""The plug-in protocol: the messages by which any memory system, in any process and language, takes part in a run.

A system has six methods and needs no base class, no DSPy and not this package:

    open(scope)                             start a memory; a scope is one conversation
    add(scope, turns)                       remember turns {id, speaker, text, said_at, role}, in time order
    ready(scope)                            return when all that was added can be found; False asks for more time
    search(scope, question, limit, at)      return up to `limit` items {text, turn_ids, score}, the best first
    close(scope)                            delete the memory
    describe()                              return {name, versions, parameters, degraded}

`forget(scope, ids)` is optional: delete turns, and all that was derived from them. `search` also gets `asker`, the
person who asks, if it has a parameter of that name and the benchmark knows the person. A turn of `add` has `audience`,
the persons who may be shown it in addition to the speaker, only if it may not be shown to everyone. A worker that does
not use worker.py names what it has of these in `optional` of its description: ["forget", "asker"].

`said_at` and `at` are ISO 8601 times. An item's `turn_ids` are the turns that its text comes from, or null if the
system does not know. The harness packs the items into every budget, so a system never sees a budget or a tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from memometer.memory import Item, Turn

MOST_TEXT = 1_000_000
"""Characters of one item at most."""


class PluginError(RuntimeError):
    """A system failed or broke the protocol. The message is one sentence that names the system and the call."""


class Plugin(Protocol):
    """A memory system in this process. Methods may be coroutines; they are called one at a time."""

    def open(self, scope: str) -> None:
        """Start an empty memory.

        Args:
            scope: A name that the harness made up, letters and digits; no two conversations share it.
        """
        ...

    def add(self, scope: str, turns: list[dict[str, Any]]) -> None:
        """Remember turns of one session.

        Args:
            scope: The memory.
            turns: In time order; `id`, `speaker`, `text`, `said_at` (ISO 8601) and `role` (user or assistant). A
                picture is part of the text, as ` [image: caption]`.
        """
        ...

    def ready(self, scope: str) -> bool | None:
        """Wait until everything added can be found. After False, the harness asks again a little later."""
        ...

    def search(self, scope: str, question: str, limit: int, at: str) -> list[dict[str, Any]]:
        """Return up to `limit` items, the best first.

        Args:
            scope: The memory.
            question: Any text.
            limit: The number of items at most. The harness asks again with a larger one if the budget is not full.
            at: The time of the question.

        Returns:
            Items with `text`, `turn_ids` (a list of ids, or null if unknown) and `score` (a number or null). `text` may
            be null if `turn_ids` is not: the turns are then shown.
        """
        ...

    def close(self, scope: str) -> None:
        """Delete the memory and all its files."""
        ...

    def describe(self) -> dict[str, Any]:
        """Describe the system.

        Returns:
            `name`; `versions`, package -> version; `parameters`, name -> value; `degraded`, a list of sentences about
            what is missing, for example an optional package without which the search is worse.
        """
        ...


@dataclass(frozen=True, slots=True)
class Description:
    """The description that a system gives of itself, for the report and the identity of a run.

    Attributes:
        name: Its name.
        versions: Package -> version.
        parameters: Name -> value.
        degraded: What is missing, one sentence each.
        source: A digest of its source, if the worker knows it.
        optional: The optional parts of the protocol that it has: `forget`, `asker`.
    """

    name: str = ""
    versions: Mapping[str, str] | None = None
    parameters: Mapping[str, Any] | None = None
    degraded: tuple[str, ...] = ()
    source: str = ""
    optional: tuple[str, ...] = ()


def turn_message(turn: Turn) -> dict[str, Any]:
    """Return a turn as `add` sends it."""
    image = f" [image: {turn.caption}]" if turn.caption else ""
    return {
        "id": turn.id,
        "speaker": turn.speaker,
        "text": clean(f"{turn.text}{image}"),
        "said_at": turn.said_at.isoformat(),
        "role": getattr(turn, "role", None) or "user",
        **({} if turn.audience is None else {"audience": list(turn.audience)}),
    }


def read_description(value: Any) -> Description:
    """Check the result of `describe`.

    Raises:
        PluginError: It does not have the documented shape.
    """
    if not isinstance(value, Mapping):
        raise PluginError(f"describe returned {_kind(value)}; expected an object with name, versions and parameters")
    degraded = value.get("degraded") or []
    if not isinstance(degraded, list) or any(not isinstance(sentence, str) for sentence in degraded):
        raise PluginError(f"describe returned degraded as {_kind(degraded)}; expected a list of sentences")
    optional = value.get("optional") or []
    if not isinstance(optional, list) or any(not isinstance(part, str) for part in optional):
        raise PluginError(f"describe returned optional as {_kind(optional)}; expected a list such as ['forget']")
    for name in ("versions", "parameters"):
        if not isinstance(value.get(name) or {}, Mapping):
            raise PluginError(f"describe returned {name} as {_kind(value[name])}; expected an object")
    return Description(
        name=clean(str(value.get("name") or "")),
        versions={str(k): str(v) for k, v in (value.get("versions") or {}).items()},
        parameters=dict(value.get("parameters") or {}),
        degraded=tuple(clean(sentence) for sentence in degraded),
        source=str(value.get("source") or ""),
        optional=tuple(optional),
    )


def read_items(value: Any, known_ids: Collection[str], limit: int) -> list[Item]:
    """Check the result of `search`. Repeated items, blank texts and what is beyond the limit are dropped.

    Args:
        value: The result.
        known_ids: The ids of all turns that were added.
        limit: The limit of the search.

    Returns:
        The items in the order of the system.

    Raises:
        PluginError: It does not have the documented shape, or names a turn that was never added.
    """
    if not isinstance(value, list):
        raise PluginError(f"search returned {_kind(value)}; expected a list of items")
    items = dict.fromkeys(_item(number, each, known_ids) for number, each in enumerate(value[:limit], start=1))
    return [item for item in items if item.text is None or item.text.strip()]


def _item(number: int, value: Any, known_ids: Collection[str]) -> Item:
    if not isinstance(value, Mapping):
        raise PluginError(f"search returned {_kind(value)} as item {number}; expected an object with text and turn_ids")
    text, ids, score = value.get("text"), value.get("turn_ids"), value.get("score")
    if text is not None and not isinstance(text, str):
        raise PluginError(f"search returned {_kind(text)} as the text of item {number}; expected a string")
    if text is not None and len(text) > MOST_TEXT:
        raise PluginError(f"search returned a text of {len(text):,} characters as item {number}; at most {MOST_TEXT:,}")
    if ids is not None and (not isinstance(ids, list) or any(not isinstance(id, str) for id in ids)):
        raise PluginError(f"search returned {_kind(ids)} as the turn_ids of item {number}; expected a list of strings")
    if text is None and not ids:
        raise PluginError(f"search returned item {number} without text and without turn_ids; it needs one of them")
    if unknown := [id for id in ids or () if id not in known_ids]:
        raise PluginError(
            f"search returned the turn id {unknown[0][:80]!r}, which was never added; return ids from add"
        )
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise PluginError(f"search returned {_kind(score)} as the score of item {number}; expected a number or null")
    if score is not None and not math.isfinite(score):
        raise PluginError(f"search returned the score {score} of item {number}; expected a finite number or null")
    return Item(
        text if text is None else clean(text),
        tuple(dict.fromkeys(ids)) if ids else None,
        None if score is None else float(score),
    )


def clean(text: str) -> str:
    """Replace what UTF-8 cannot encode, such as half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def lines_of(text: str) -> str:
    """Return a text as lines with single spaces, each ending in a newline; token counts of such lines add up."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line)


def is_verbatim(item: Item, turns: Sequence[Turn]) -> bool:
    """Return True if an item shows turns unchanged, optionally with their speakers and dates.

    Args:
        item: The item.
        turns: The turns that it names.
    """
    if item.text is None:
        return True
    rest = " ".join(item.text.split())
    for turn in turns:
        if not (expected := " ".join(turn_message(turn)["text"].split())):
            continue
        before, text, rest = rest.partition(expected)
        if not text or len(before) > _MOST_BEFORE:
            return False
    return bool(turns) and len(rest) <= _MOST_BEFORE


_MOST_BEFORE = 60
"""Characters around a verbatim turn at most: a date, a speaker, brackets."""


def _kind(value: Any) -> str:
    """Name a JSON value in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
