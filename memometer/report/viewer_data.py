"""The data of the report page as JSON: conversations, questions, runs and every answer.

Turns are named by their position in the conversation, and recalled turns by ranges of positions, so that the page of a
run with a large budget stays small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from memometer.benchmarks.metrics import evidence_recall
from memometer.benchmarks.protocol import Conversation, Dataset, Question
from memometer.judging import sample_scores
from memometer.judging.graders import grader_of
from memometer.report.aggregate import SystemKey
from memometer.report.pareto import answered_questions, measures
from memometer.report.results import Run
from memometer.report.summary import summarize
from memometer.run.folder import Record, is_answered, key, latest
from memometer.stats.pairwise import Match, SystemScores, compare_family

Results = dict[str, Any]


def page(runs: Sequence[Run], rows: Sequence[Sequence[Results]], *, live: bool = False) -> Results:
    """Collect the data of the page.

    Args:
        runs: The runs.
        rows: The answers of each run, as `Rows` makes them.
        live: True for runs in progress, which the page then polls.

    Returns:
        The texts as `texts_of` returns them, each run with its summary and answers, and `between`.
    """
    asked = {record["question_id"] for run in runs for record in run.records}
    return {
        "live": live,
        "categories": {key: name for run in runs for key, name in run.data.categories.items()},
        **texts_of([run.data for run in runs], asked),
        "runs": [
            {
                "name": run.name,
                "summary": asdict(summarize(run.manifest, run.results)),
                "config": run.manifest["config"],
                "rows": list(of_run),
            }
            for run, of_run in zip(runs, rows, strict=True)
        ],
        "between": between(runs),
    }


def between(runs: Sequence[Run]) -> list[Results]:
    """Compare the systems of the first run with those of every other run, over the answerable questions.

    Args:
        runs: The runs.

    Returns:
        Comparisons as in results.json; the tests are adjusted over all by one measure.
    """
    answered = [answered_questions(run.records, run.data.questions) for run in runs]
    common = [measures(run.records) for run in runs]
    found: list[Results] = []
    for name, (measure, grader) in common[0].items():
        if not all(name in known for known in common):
            continue
        family: list[Match] = []
        for run, others in zip(runs[1:], answered[1:], strict=True):
            for first, second in _matches(list(answered[0]), list(others)):
                a, b = (
                    SystemScores(*at, sample_scores.by_question(of[at], measure, grader), run=one.name)
                    for one, of, at in ((runs[0], answered[0], first), (run, others, second))
                )
                if a.scores and b.scores:
                    family.append((a, b, None))
        found += compare_family(family, measure, grader=grader.name if grader else None)
    return found


def _matches(first: list[SystemKey], second: list[SystemKey]) -> list[tuple[SystemKey, SystemKey]]:
    """Each system at each budget with itself; if both runs have one system only, these two."""
    same = [(at, at) for at in first if at in second]
    return same or ([(first[0], second[0])] if len(first) == len(second) == 1 else [])


def texts_of(datasets: Iterable[Dataset], question_ids: Iterable[str]) -> Results:
    """Collect the questions and their conversations.

    Args:
        datasets: The data of the runs.
        question_ids: Ids of the questions.

    Returns:
        `notice`: the licence of the data.
        `conversations.<id>`: `sessions` {number: date}, `turns` [[id, session, speaker, text]].
        `questions.<id>`: `conversation`, `category`, `text`, `gold`, `trap`, `evidence` (positions), `unresolved`.
    """
    asked = set(question_ids)
    datasets = list({data.sha256: data for data in datasets}.values())
    questions = [question for data in datasets for question in data.questions if question.id in asked]
    used = {question.conversation for question in questions}
    conversations = [c for data in datasets for c in data.conversations if c.id in used]
    positions = {c.id: _positions(c) for c in conversations}
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


def _positions(conversation: Conversation) -> dict[str, int]:
    return {turn.id: position for position, turn in enumerate(conversation.turns)}


class Rows:
    """The answers of a run as the page lists them; a row is built again only if its records changed.

    Args:
        data: The data of the run.
    """

    def __init__(self, data: Dataset) -> None:
        self._questions = {question.id: question for question in data.questions}
        self._positions = {c.id: _positions(c) for c in data.conversations}
        self._rows: dict[Any, tuple[int, Results]] = {}

    def of(self, records: Sequence[Record]) -> list[Results]:
        """Build a row for each key that was asked.

        Args:
            records: All attempts.

        Returns:
            Rows in the order of the first attempts.
        """
        errors: dict[Any, list[str]] = {}
        for record in records:
            if not is_answered(record):
                errors.setdefault(key(record), []).append(record["error"])
        rows = []
        for k, record in latest(records).items():
            state = len(record["verdicts"]) + 1000 * record["attempt"]
            if k not in self._rows or self._rows[k][0] != state:
                question = self._questions[record["question_id"]]
                self._rows[k] = state, self._row(question, record, errors.get(k, []))
            rows.append(self._rows[k][1])
        return rows

    def _row(self, question: Question, record: Record, errors: Sequence[str]) -> Results:
        positions = self._positions[question.conversation]
        answer, shown = record["answer"], record["recall"]["turn_ids"]
        row: Results = {
            "system": record["system"],
            "budget": record["budget_tokens"],
            "question": question.id,
            "option_order": record["option_order"],
            "attempt": record["attempt"],
            "answer": answer,
            "raw_answer": said if (said := record.get("raw_answer")) != answer else None,
            "error": record["error"],
            "memory_error": record.get("memory_error"),
            "failed": [error for error in errors if error != record["error"]],
            "recalled": ranges(positions[id] for id in shown or () if id in positions),
            "recall_unknown": shown is None,
            "tokens": record["recall"]["tokens"],
            "evidence_recall": None if shown is None else evidence_recall(question.evidence, set(shown)),
            "f1": None if answer is None else question.score(answer, record["option_order"]),
            "verdicts": [_verdict(verdict) for verdict in record["verdicts"]],
            "total_tokens": _tokens(record),
            "calls": record["calls"],
            "seconds": record.get("seconds"),
            "truncated": bool(record.get("truncated")),
            "status": record.get("status"),
            "cited": [positions[id] for id in record.get("citations", ()) if id in positions],
            "rounds": [
                [r["status"], r["lookup"], r["context_tokens"], r["total_tokens"]] for r in record.get("rounds", ())
            ],
        }
        return {name: value for name, value in row.items() if value is not False and value not in (None, "", [])}


def _tokens(record: Record) -> int | None:
    known = record["model"] and record["prompt_tokens"] is not None
    return record["prompt_tokens"] + record["completion_tokens"] if known else None


def _verdict(verdict: Record) -> list[Any]:
    """[grader, repeat, label, raw reply, reason]."""
    reply = verdict.get("raw") or "", verdict.get("reason") or ""
    return [grader_of(verdict).name, verdict.get("repeat", 0), verdict["label"], *reply]


def ranges(positions: Iterable[int]) -> str:
    """Write positions as increasing ranges: `0-12,15`.

    Args:
        positions: Positions in any order, with duplicates.

    Returns:
        The ranges; empty without positions.
    """
    parts: list[list[int]] = []
    for position in sorted(set(positions)):
        if parts and position == parts[-1][1] + 1:
            parts[-1][1] = position
        else:
            parts.append([position, position])
    return ",".join(f"{first}-{last}" if first != last else f"{first}" for first, last in parts)
