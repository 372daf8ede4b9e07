"""The arms of an adapter's evaluation, and their paired comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

from memometer.benchmarks.protocol import Question
from memometer.benchmarks.reward import Objective, Reply, balanced_f1
from memometer.report.aggregate import is_answered
from memometer.run.folder import Record
from memometer.stats.intervals import Comparison, paired

ADAPTER, BASE, STYLED = "adapter", "base", "base with style rules"
EXAMPLES = "base with examples"
ONE_CALL = "adapter, one call"
"""The adapter of episodes without lookups, with a memory that costs as many tokens as its episodes do on average."""
STARTS = {"sft": "supervised", "distill": "distilled"}
"""Names of the arms of starting adapters by their training mode; others are called `starting adapter`."""


def compare_arms(arms: Sequence[str], asked: Iterable[Question], records: Sequence[Record]) -> list[str]:
    """Return lines that compare the adapter with the other arms, paired, with intervals."""
    questions = {question.id: question for question in asked}
    by_arm: dict[str, dict[str, Record]] = {name: {} for name in arms}
    for record in records:
        if is_answered(record) and record["answer"] is not None:
            by_arm[record["system"]][record["question_id"]] = record
    quality = Objective(token_price=0.0).quality

    def f1(question: Question, record: Record) -> float:
        return question.score(record["answer"])

    def balanced(question: Question, record: Record) -> float:
        return balanced_f1(question, record["answer"])

    measures: list[tuple[str, Callable[[Question], bool], Callable[[Question, Record], float]]] = [
        ("F1, answerable questions", lambda question: question.answerable, f1),
        ("F1 with list precision", lambda question: question.answerable, balanced),
        ("abstentions, unanswerable questions", lambda question: not question.answerable, f1),
        ("quality, all questions", lambda _: True, lambda question, record: quality(question, Reply.of_record(record))),
    ]
    lines = []
    for one, other, meaning in comparisons(arms):
        lines.append(f"{one} against {other} ({meaning}), percent:")
        for name, counts, score in measures:
            both = [id for id in by_arm[one] if id in by_arm[other] and counts(questions[id])]
            mine, theirs = ([score(questions[id], by_arm[arm][id]) for id in both] for arm in (one, other))
            found = paired(mine, theirs, [questions[id].conversation for id in both])
            lines.append(f"  {name}: {100 * _mean(theirs):.1f} -> {100 * _mean(mine):.1f}, {_describe(found)}")
    return lines


def comparisons(arms: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the compared arms and the meaning of each comparison, the most important one first."""
    starts = [arm for arm in arms if arm not in (ADAPTER, BASE, EXAMPLES, STYLED, ONE_CALL)]
    found = [(ADAPTER, EXAMPLES, "the gain")] if EXAMPLES in arms else []
    if ONE_CALL in arms:
        found.append((ADAPTER, ONE_CALL, "the effect of lookups, at equal total tokens"))
    if starts:
        found.append((ADAPTER, starts[-1], "the share of the last training"))
        found += [(start, EXAMPLES, "the gain before the last training") for start in starts if EXAMPLES in arms]
    found.append((ADAPTER, BASE, "the same prompt without examples, whose form a base model often misses"))
    return [*found, (ADAPTER, STYLED, "the effect beyond style")]


def starting_adapters(adapter: Path) -> dict[str, Path]:
    """Return the adapters from which a training started, by arm, the first training first.

    A training copies its starting adapter to `start/` next to `best/`, and the adapter before that to `start/start/`.
    """
    found: list[tuple[str, Path]] = []
    path = adapter.parent / "start" if adapter.name == "best" else adapter / "start"
    while (path / "adapter_config.json").is_file():
        notes = json.loads((path / "training.json").read_text("utf-8")) if (path / "training.json").exists() else {}
        found.insert(0, (STARTS.get(notes.get("mode", ""), "starting adapter"), path))
        path = path / "start"
    names = [name for name, _ in found]
    return {name if names.count(name) == 1 else f"{name} {n}": path for n, (name, path) in enumerate(found, start=1)}


def _describe(found: Comparison) -> str:
    if found.difference is None:
        return "no such questions"
    low, high = found.low, found.high
    interval = f" [{100 * low:+.1f}, {100 * high:+.1f}]" if low is not None and high is not None else ""
    significant = bool(found.low and found.low > 0) or bool(found.high and found.high < 0)
    return (
        f"{100 * found.difference:+.1f}{interval}, {found.wins} better, {found.losses} worse, n = {found.n}, "
        f"{found.clusters} conversations" + ("" if significant else ": not significant")
    )


def one_call_budget(records: Iterable[Record], overhead: int) -> int:
    """Return the tokens of memory with which one call costs as much as the adapter's episodes on average.

    Args:
        records: The records of the evaluation.
        overhead: Tokens of a call without memory: prompt, question and longest reply.
    """
    totals = [
        sum(call["total_tokens"] for call in r["rounds"]) for r in records if r["system"] == ADAPTER and r.get("rounds")
    ]
    return max(MIN_MEMORY, int(_mean(totals)) - overhead)


MIN_MEMORY = 64


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
