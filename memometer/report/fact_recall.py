"""Recall measures for systems that do not show exact turns: recall of batches, and coverage of the gold words.

Evidence recall needs the exact turns that a text comes from. A system that names a batch of turns for each text gets
the recall of these batches next to its chance level: the share of the conversation that the batches cover. Without any
source, the measure is gold-word coverage: how many words of the gold answer are in the text that was shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from memometer.benchmarks.protocol import Dataset, Question
from memometer.report.aggregate import grouped
from memometer.retrieval.tokenize import terms
from memometer.run.folder import Key, Record, failed, is_answered
from memometer.stats.intervals import clustered_mean

Results = dict[str, Any]
Items = Mapping[tuple[str, str], Record]
"""(system, key) -> item of items.jsonl."""

SHIFTS = (1, 2, 3, 5, 8)
"""The chance level of a question is its coverage in the texts shown for the questions at these distances."""


def measure(records: Sequence[Record], data: Dataset, planned: Sequence[Key], items: Items) -> Results:
    """Compute batch recall and gold-word coverage of every system, if a system of the run does not show exact turns.

    Args:
        records: All attempts.
        data: The data.
        planned: What was planned.
        items: The items of the run.

    Returns:
        `<system>.<budget>` -> `provenance` (turn, batch or none); `batch_recall` and `batch_chance`, None unless the
        provenance is batch; `coverage`, `coverage_chance` and `coverage_oracle` over single-hop questions, with `n`.
        Fractions; `*_interval` is clustered by conversation. Empty if every system shows exact turns.
    """
    if all(record["recall"].get("provenance", "turn") == "turn" for record in records):
        return {}
    texts = _Texts(data, items)
    found: dict[str, Results] = defaultdict(dict)
    for (system, budget), pairs in grouped(records, data.questions, planned).items():
        shown = [(q, r) for q, r in pairs if r is not None and is_answered(r) and q.answerable and q.evidence]
        if shown:
            found[system][str(budget)] = {**_batches(shown, texts), **_coverage(shown, texts)}
    return dict(found)


def is_single_hop(question: Question) -> bool:
    """Return True if one turn contains the answer."""
    return question.answerable and len(question.evidence) == 1


class _Texts:
    """The terms of turns and items, each computed once."""

    def __init__(self, data: Dataset, items: Items) -> None:
        self.items = items
        self.lines = {c.id: {turn.id: turn.line for turn in c.turns} for c in data.conversations}
        self._turns: dict[tuple[str, str], frozenset[str]] = {}
        self._items: dict[tuple[str, str], frozenset[str]] = {}

    def of_turn(self, conversation: str, id: str) -> frozenset[str]:
        key = conversation, id
        if key not in self._turns:
            self._turns[key] = frozenset(terms(self.lines[conversation].get(id, "")))
        return self._turns[key]

    def of_record(self, record: Record) -> list[frozenset[str]]:
        """The terms of each part of the text that was shown."""
        recall, conversation = record["recall"], record["conversation"]
        if "items" not in recall:
            return [self.of_turn(conversation, id) for id in recall["turn_ids"] or ()]
        parts = []
        for name in recall["items"]:
            item = self.items.get((record["system"], name))
            if item is None:
                continue
            if item["text"] is None:
                parts += [self.of_turn(conversation, id) for id in item["turn_ids"]]
                continue
            key = record["system"], name
            if key not in self._items:
                self._items[key] = frozenset(terms(item["text"]))
            parts.append(self._items[key])
        return parts


def _batches(shown: Sequence[tuple[Question, Record]], texts: _Texts) -> Results:
    order = ("turn", "batch", "none")
    provenance = max((r["recall"].get("provenance", "turn") for _, r in shown), key=order.index)
    result: Results = {"provenance": provenance, "batch_recall": None, "batch_interval": None, "batch_chance": None}
    if provenance != "batch":
        return result
    recalls = [0.0 if failed(r) else _share(q.evidence, r["recall"].get("source_ids", ())) for q, r in shown]
    chances = [len(r["recall"].get("source_ids", ())) / len(texts.lines[q.conversation]) for q, r in shown]
    estimate = clustered_mean(recalls, [q.conversation for q, _ in shown])
    interval = None if estimate.low is None else [estimate.low, estimate.high]
    chance = sum(chances) / len(chances)
    return {**result, "batch_recall": estimate.mean, "batch_interval": interval, "batch_chance": chance}


def _share(wanted: Collection[str], present: Collection[str]) -> float:
    present = set(present)
    return sum(id in present for id in wanted) / len(wanted)


def _coverage(shown: Sequence[tuple[Question, Record]], texts: _Texts) -> Results:
    by_conversation: dict[str, list[tuple[Question, Record, list[str]]]] = defaultdict(list)
    for question, record in shown:
        # Words of the question are in many texts and are no sign of an answer.
        gold = [word for word in dict.fromkeys(terms(question.gold or "")) if word not in set(terms(question.text))]
        if gold and is_single_hop(question):
            by_conversation[question.conversation].append((question, record, gold))
    own: list[float] = []
    chance: list[float] = []
    oracle: list[float] = []
    clusters: list[str] = []
    for conversation, rows in by_conversation.items():
        parts = [texts.of_record(record) for _, record, _ in rows]
        for at, (question, _, gold) in enumerate(rows):
            own.append(_covered(gold, parts[at]))
            others = [parts[(at + shift) % len(rows)] for shift in SHIFTS if shift % len(rows)]
            chance.append(sum(_covered(gold, other) for other in others) / len(others) if others else 0.0)
            oracle.append(_covered(gold, [texts.of_turn(conversation, id) for id in question.evidence]))
            clusters.append(conversation)
    if not own:
        return {"coverage": None, "coverage_interval": None, "coverage_chance": None, "coverage_oracle": None, "n": 0}
    estimate = clustered_mean(own, clusters)
    return {
        "coverage": estimate.mean,
        "coverage_interval": None if estimate.low is None else [estimate.low, estimate.high],
        "coverage_chance": sum(chance) / len(chance),
        "coverage_oracle": sum(oracle) / len(oracle),
        "n": len(own),
    }


def _covered(gold: Sequence[str], parts: Sequence[frozenset[str]]) -> float:
    """The share of gold words that are in one of the parts."""
    return sum(any(word in part for part in parts) for word in gold) / len(gold)
