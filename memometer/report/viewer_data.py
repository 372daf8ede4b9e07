"""What the report page shows, as a value that JSON can write: conversations, questions, runs, every answer.

Turns are named by their position in the conversation, and what was recalled by ranges of positions, so that a run at
20,000 tokens, where a record names almost every turn, stays small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.protocol import Conversation, Dataset, Question
from memometer.judging.graders import grading_of
from memometer.report.summary import Results, summary
from memometer.run.folder import Record, is_answered, key, latest
from memometer.stats import sample_scores
from memometer.stats.pairwise import Entrant, corrected, versus
from memometer.stats.pareto import measures, with_results


def page(runs: Sequence[Run], rows: Sequence[Sequence[Results]], *, live: bool = False) -> Results:
    """The whole of it: the texts as `texts_of` makes them, each run with its `summary` and its `rows`, and `between`
    the runs as `between` compares them."""
    asked = {record["question_id"] for run in runs for record in run.records}
    return {
        "live": live,
        "categories": {key: name for run in runs for key, name in run.data.categories.items()},
        **texts_of([run.data for run in runs], asked),
        "runs": [
            {
                "name": run.name,
                "summary": summary(run.manifest, run.results),
                "config": run.manifest["config"],
                "rows": list(mine),
            }
            for run, mine in zip(runs, rows, strict=True)
        ],
        "between": between(runs),
    }


Place = tuple[str, int]
"""A system and its budget in tokens."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is published of a run: its folder's name, what was asked, what came back, what it amounts to."""

    name: str
    manifest: Mapping[str, Any]
    records: Sequence[Record]
    results: Mapping[str, Any]
    data: Dataset


def between(runs: Sequence[Run]) -> list[Results]:
    """The systems of the first run, paired with those of every other one, answerable questions, in the form of
    results.json's `comparisons`; Holm's correction is over all by one measure."""
    results = [with_results(run.records, run.data.questions) for run in runs]
    common = [measures(run.records) for run in runs]
    found: list[Results] = []
    for name, measure in common[0].items():
        if not all(name in known for known in common):
            continue
        family = []
        for run, theirs in zip(runs[1:], results[1:], strict=True):
            for mine, other in _matches(list(results[0]), list(theirs)):
                a, b = (
                    Entrant(*place, sample_scores.by_question(of[place], *measure), run=one.name)
                    for one, of, place in ((runs[0], results[0], mine), (run, theirs, other))
                )
                if a.scores and b.scores:
                    family.append(versus(a, b, measure[0], grading=measure[1]))
        found += corrected(family)
    return found


def _matches(mine: list[Place], theirs: list[Place]) -> list[tuple[Place, Place]]:
    """Each system at each budget with itself; of two runs of one system each those two, whatever they are called."""
    same = [(place, place) for place in mine if place in theirs]
    return same or ([(mine[0], theirs[0])] if len(mine) == len(theirs) == 1 else [])


def texts_of(datasets: Iterable[Dataset], question_ids: Iterable[str]) -> Results:
    """The questions asked, of all the data sets, and their conversations.

    `conversations.<id>`: `sessions` {number: date}, `turns` [[id, session, speaker, text]]. `questions.<id>`:
    `conversation`, `category`, `text`, `gold`, `trap`, `evidence` (positions), `unresolved`.
    """
    asked = set(question_ids)
    datasets = list({data.sha256: data for data in datasets}.values())
    questions = [question for data in datasets for question in data.questions if question.id in asked]
    used = {question.conversation for question in questions}
    conversations = [c for data in datasets for c in data.conversations if c.id in used]
    positions = {c.id: positions_of(c) for c in conversations}
    return {
        "notice": " ".join(dict.fromkeys(data.licence for data in datasets if data.licence)),
        "conversations": {
            c.id: {
                "sessions": {s.number: f"{s.said_at:%a} {s.said_at.day} {s.said_at:%B %Y}" for s in c.sessions},
                "turns": [
                    [t.id, t.session, t.speaker, f"{t.text} [image: {t.caption}]" if t.caption else t.text]
                    for t in c.turns
                ],
            }
            for c in conversations
        },
        "questions": {
            q.id: {
                "conversation": q.conversation,
                "category": q.category,
                "text": q.text,
                "gold": q.gold,
                "trap": q.adversarial_answer,
                "evidence": [positions[q.conversation][id] for id in q.evidence],
                "unresolved": list(q.unresolved),
            }
            for q in questions
        },
    }


def positions_of(conversation: Conversation) -> dict[str, int]:
    return {turn.id: position for position, turn in enumerate(conversation.turns)}


class Rows:
    """Records as the page lists them. A row is made again only where its records changed, for a run that goes on."""

    def __init__(self, data: Dataset) -> None:
        self._questions = {question.id: question for question in data.questions}
        self._positions = {c.id: positions_of(c) for c in data.conversations}
        self._made: dict[Any, tuple[int, Results]] = {}

    def of(self, records: Sequence[Record]) -> list[Results]:
        """A row for each question that was tried, in the order in which they were first tried."""
        failed: dict[Any, list[str]] = {}
        for record in records:
            if not is_answered(record):
                failed.setdefault(key(record), []).append(record["error"])
        rows = []
        for k, record in latest(records).items():
            state = len(record["verdicts"]) + 1000 * record["attempt"]
            if k not in self._made or self._made[k][0] != state:
                question = self._questions[record["question_id"]]
                self._made[k] = state, self._row(question, record, failed.get(k, []))
            rows.append(self._made[k][1])
        return rows

    def _row(self, question: Question, record: Record, failed: Sequence[str]) -> Results:
        positions = self._positions[question.conversation]
        answer, shown = record["answer"], record["recall"]["turn_ids"]
        row: Results = {
            "system": record["system"],
            "budget": record["budget_tokens"],
            "question": question.id,
            "form": record["form"],
            "attempt": record["attempt"],
            "answer": answer,
            "said": said if (said := record.get("said")) != answer else None,
            "error": record["error"],
            "memory_error": record.get("memory_error"),
            "failed": [error for error in failed if error != record["error"]],
            "recalled": ranges(positions[id] for id in shown or () if id in positions),
            "recall_unknown": shown is None,
            "tokens": record["recall"]["tokens"],
            "evidence_recall": None if shown is None else evidence_recall(question.evidence, set(shown)),
            "f1": None if answer is None else question.score(answer, record["form"]),
            "verdicts": [verdict_of(verdict) for verdict in record["verdicts"]],
            "total_tokens": _tokens(record),
            "calls": record["calls"],
            "seconds": record.get("seconds"),
            "truncated": bool(record.get("truncated")),
            "status": record.get("status"),
            "cited": [positions[id] for id in record.get("cited", ()) if id in positions],
            "rounds": [
                [r["status"], r["lookup"], r["context_tokens"], r["total_tokens"]] for r in record.get("rounds", ())
            ],
        }
        return {name: value for name, value in row.items() if value is not False and value not in (None, "", [])}


def _tokens(record: Record) -> int | None:
    known = record["model"] and record["prompt_tokens"] is not None
    return record["prompt_tokens"] + record["completion_tokens"] if known else None


def verdict_of(verdict: Record) -> list[Any]:
    """[grading, repeat, label, raw reply, reason]."""
    said = verdict.get("raw") or "", verdict.get("reason") or ""
    return [grading_of(verdict).name, verdict.get("repeat", 0), verdict["label"], *said]


def ranges(positions: Iterable[int]) -> str:
    """Positions as `0-12,15`, rising, each once."""
    parts: list[list[int]] = []
    for position in sorted(set(positions)):
        if parts and position == parts[-1][1] + 1:
            parts[-1][1] = position
        else:
            parts.append([position, position])
    return ",".join(f"{first}-{last}" if first != last else f"{first}" for first, last in parts)
