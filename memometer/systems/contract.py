"""The contract test of the plug-in protocol: what every system must do, checked on a small conversation.

from memometer.systems.contract import check
assert check("./my_memory.py:MyMemory") == []
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from memometer.memory import Item, Turn
from memometer.systems import specification
from memometer.systems.connect import connect
from memometer.systems.plugin import PluginError, read_description, read_items, turn_message
from memometer.systems.specification import BUILT_IN, THROUGH_SEARCH

QUESTION = "Which instrument did Oskar repair?"


def conversation(prefix: str, subject: str) -> list[Turn]:
    """Return a conversation of two sessions about a subject, with odd texts."""
    start = datetime(2024, 3, 1, 18, 30)
    texts = [
        f"I repaired the {subject} yesterday.",
        "Wonderful! Was it hard?",
        "The reeds took all day. 🎹 naïve Zürich\n\tsecond line",
        "ok",
        "x" * 5000,
        'Quotes " and { braces } \\ and [image: a blue bowl]',
    ]
    return [
        Turn(f"{prefix}{n}", "Oskar" if n % 2 == 0 else "Nadia", text, 1 + n // 3, start + timedelta(days=n // 3))
        for n, text in enumerate(texts)
    ]


def check(system: str, *, timeout_seconds: float = 120.0) -> list[str]:
    """Check a system.

    Args:
        system: As for `--systems`: a class, a command or a URL.
        timeout_seconds: Time limit of each call.

    Returns:
        One sentence for each fault; empty if the system keeps the protocol.

    Raises:
        SpecificationError: The text names no system.
    """
    found = specification.read(system)
    if found.kind in (BUILT_IN, THROUGH_SEARCH):
        return [f"{system} is a built-in system; name a class, a command or a URL"]
    connection = connect(found, {})

    def call(method: str, **params: Any) -> Any:
        return connection.call(method, params, timeout_seconds=timeout_seconds)

    try:
        return list(_faults(call))
    except PluginError as error:
        return [str(error)]
    finally:
        connection.stop()


def _faults(call: Callable[..., Any]) -> Iterator[str]:
    described = read_description(call("describe"))
    if not described.name:
        yield "describe returns no name"
    first, second = conversation("A", "accordion"), conversation("B", "violin")
    for scope, turns in (("contract1", first), ("contract2", second)):
        call("open", scope=scope)
        for session in (1, 2):
            call("add", scope=scope, turns=[turn_message(turn) for turn in turns if turn.session == session])
        for _ in range(600):
            if call("ready", scope=scope) is not False:
                break
        else:
            yield "ready returned False 600 times"
    ids = {turn.id for turn in first}
    items = _search(call, "contract1", ids, limit=100)
    if not items:
        yield "search finds nothing after an ingest"
    if _search(call, "contract1", ids, limit=100) != items:
        yield "the same search returns other items the second time"
    if len(call("search", scope="contract1", question=QUESTION, limit=1, at=_at(first))) > 1:
        yield "search returns more items than its limit"
    if "violin" in json.dumps([item.text for item in items]):
        yield "a search finds text of another scope"
    for question in ("", "?", "🎹", "a" * 3000, "No such thing was mentioned"):
        read_items(call("search", scope="contract1", question=question, limit=5, at=_at(first)), ids, 5)
    call("close", scope="contract1")
    if not _search(call, "contract2", {turn.id for turn in second}, limit=100):
        yield "closing one scope empties another"
    call("open", scope="contract1")
    if _search(call, "contract1", ids, limit=100):
        yield "a scope that was closed and opened again still holds turns"
    call("close", scope="contract1")
    call("close", scope="contract2")


def _at(turns: list[Turn]) -> str:
    return turns[-1].said_at.isoformat()


def _search(call: Callable[..., Any], scope: str, ids: set[str], *, limit: int) -> list[Item]:
    found = call("search", scope=scope, question=QUESTION, limit=limit, at="2024-03-02T18:30:00")
    return read_items(found, ids, limit)
