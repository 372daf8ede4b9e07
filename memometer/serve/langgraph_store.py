"""LangGraph's long-term memory (BaseStore) on any store of this package.

    store = LangGraphStore("sqlite:///memory.db")
    graph = builder.compile(store=store)
    store.put(("users", "ada"), "kayak", {"text": "sold to Oskar"})
    store.search(("users",), query="Who has the kayak?")

Each namespace is a scope of the store. Needs the extra `langgraph`.
"""

from __future__ import annotations

import asyncio
import json
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchItem,
    SearchOp,
    validate_op_namespace,
)
from langgraph.store.base.embed import get_text_at_path

from memometer.models.concurrency_limited import ConcurrencyLimitedEncoder
from memometer.models.encoders import Encoder
from memometer.store import opened
from memometer.store.episode import Episode
from memometer.store.hybrid_scoring import DEFAULT, Weights

Namespace = tuple[str, ...]

PREFIX = "langgraph:"
ACROSS_NAMESPACES = Weights(lexical=0.0, dense=1.0, neighbours=0.0)
"""BM25 scores are relative to the best in a namespace; only cosines are comparable across namespaces."""

IN_ONE_NAMESPACE = Weights(lexical=DEFAULT.lexical, dense=DEFAULT.dense, neighbours=0.0)
"""Items are not a conversation, so neighbouring items say nothing about each other."""

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


class LangGraphStore(BaseStore):
    """LangGraph's BaseStore.

    Args:
        memory_url: URL of the store (memometer/store/__init__.py).
        encoder: an encoder or its name; None for the default one, loaded at first use.
        fields: paths in a value whose text is searched; `$` for the whole value.
        now: returns the current time in Unix seconds.
    """

    def __init__(
        self,
        memory_url: str,
        *,
        encoder: Encoder | str | None = None,
        fields: Sequence[str] = ("$",),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = opened(memory_url)
        self._encoder = ConcurrencyLimitedEncoder(encoder)
        self._fields = tuple(fields)
        self._now = now

    def batch(self, ops: Iterable[Any]) -> list[Any]:
        """Run operations; return one result each.

        All reads run before the writes. Of several writes to one key, the last one counts.
        """
        operations = list(ops)
        for op in operations:
            validate_op_namespace(op)
        results = [None if isinstance(op, PutOp) else self._read(op) for op in operations]
        for op in {(op.namespace, op.key): op for op in operations if isinstance(op, PutOp)}.values():
            self._put(op)
        return results

    async def abatch(self, ops: Iterable[Any]) -> list[Any]:
        """Run `batch` in a thread, which keeps encoding and storage off the event loop."""
        return await asyncio.to_thread(self.batch, list(ops))

    def _read(self, op: Any) -> Any:
        if isinstance(op, GetOp):
            found = self._store.get(_scope(op.namespace), [op.key])
            return Item(**_item_fields(op.namespace, found[0])) if found else None
        if isinstance(op, SearchOp):
            return self._search(op)
        if isinstance(op, ListNamespacesOp):
            spaces = [space for space in self._namespaces(()) if _matches(space, op.match_conditions or ())]
            cut = sorted({space if op.max_depth is None else space[: op.max_depth] for space in spaces})
            return cut[op.offset : op.offset + op.limit]
        raise ValueError(f"unknown operation {type(op).__name__}")

    def _put(self, op: PutOp) -> None:
        scope = _scope(op.namespace)
        if op.value is None:
            self._store.delete(scope, [op.key])
            self._store.erase()
            return
        at, value = self._now(), dict(op.value)
        text = "" if op.index is False else self._text(value, op.index)
        known = self._store.get(scope, [op.key])
        created = float(known[0].details["created"]) if known else at
        episode = Episode(op.key, text, at, details={"value": json.dumps(value), "created": created})
        if text:
            vector = np.atleast_2d(self._encoder([text]))
            (episode,) = self._store.encoded([episode], vector, encoder=self._encoder.name)
        if self._store.replace(scope, episode):
            self._store.erase()  # the former value

    def _text(self, value: dict[str, Any], paths: list[str] | None) -> str:
        return "\n".join(text for path in paths or self._fields for text in get_text_at_path(value, path))

    def _search(self, op: SearchOp) -> list[SearchItem]:
        spaces = self._namespaces(op.namespace_prefix)
        found: list[tuple[float | None, Namespace, Episode]] = []
        vector = self._encoder([op.query])[0] if op.query and spaces else None
        for space in spaces:
            scope = _scope(space)
            scores: dict[str, float] = {}
            if op.query and vector is not None:
                # The store cannot filter by value, so with a filter every item is retrieved.
                k = self._store.size(scope).episodes if op.filter else op.offset + op.limit
                weights = IN_ONE_NAMESPACE if len(spaces) == 1 else ACROSS_NAMESPACES
                hits = self._store.retrieve_similar(
                    scope, op.query, vector, k, at=self._now(), weights=weights, encoder=self._encoder.name
                )
                scores = {hit.episode.id: hit.score for hit in hits if hit.episode.text}
                episodes: Iterable[Episode] = [hit.episode for hit in hits]
            else:
                episodes = self._store.scan(scope)
            found += [(scores.get(e.id), space, e) for e in episodes if _satisfies(_value(e), op.filter or {})]
        found.sort(key=lambda hit: (hit[0] is None, -(hit[0] or 0.0), -hit[2].at, hit[1], hit[2].id))
        page = found[op.offset : op.offset + op.limit]
        return [SearchItem(**_item_fields(space, episode), score=score) for score, space, episode in page]

    def _namespaces(self, prefix: Namespace) -> list[Namespace]:
        scopes = (scope.removeprefix(PREFIX) for scope in self._store.scopes() if scope.startswith(PREFIX))
        return [space for space in (tuple(scope.split(".")) for scope in scopes) if space[: len(prefix)] == prefix]


def _scope(namespace: Namespace) -> str:
    return PREFIX + ".".join(namespace)  # LangGraph allows no full stop in a label


def _value(episode: Episode) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(str(episode.details["value"]))
    return value


def _item_fields(namespace: Namespace, episode: Episode) -> dict[str, Any]:
    return {
        "namespace": namespace,
        "key": episode.id,
        "value": _value(episode),
        "created_at": datetime.fromtimestamp(float(episode.details["created"]), UTC),
        "updated_at": datetime.fromtimestamp(episode.at, UTC),
    }


def _matches(namespace: Namespace, conditions: Iterable[MatchCondition]) -> bool:
    """True if a namespace has the required prefix and suffix; `*` matches any label."""
    for condition in conditions:
        path = tuple(condition.path)
        part = (
            namespace[: len(path)]
            if condition.match_type == "prefix"
            else namespace[max(0, len(namespace) - len(path)) :]
        )
        if len(part) < len(path) or any(wanted not in ("*", label) for wanted, label in zip(path, part, strict=True)):
            return False
    return True


def _satisfies(value: Any, wanted: Any) -> bool:
    """True if a value equals a filter, or satisfies its operators, at any depth."""
    if isinstance(wanted, dict):
        if any(name.startswith("$") for name in wanted):
            return all(_compare(value, name, other) for name, other in wanted.items())
        return isinstance(value, dict) and all(_satisfies(value.get(name), other) for name, other in wanted.items())
    return bool(value == wanted)


def _compare(value: Any, name: str, other: Any) -> bool:
    if name not in OPERATORS:
        raise ValueError(f"unknown filter operator {name}; known: {', '.join(OPERATORS)}")
    try:
        return OPERATORS[name](value, other)
    except TypeError:  # values of different types do not match
        return False
