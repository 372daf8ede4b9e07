"""How others write down a run, one entry a question: where each thing stands in their files.

A format more is one more entry in FORMATS. It must name conversation and question by number: LOCOMO repeats questions
word for word, and by its text alone an answer cannot be told from its twin's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memometer.judging.judge import Label


@dataclass(frozen=True, slots=True)
class Format:
    """Paths are keys with dots between them; `*` is every value of an object or every element of a list. Those up to
    `judge` begin at the file, those from `id` at an entry, and `answer` and `verdicts` at an entry's variant."""

    name: str
    licence: str
    """Whose files these are as far as is known, and under which licence."""
    entries: str
    model: str
    """Who answered."""
    judge: str
    id: str
    id_pattern: re.Pattern[str]
    """Two groups: the 0-based places of the conversation in LOCOMO and of the question in it."""
    question: str
    gold: str
    answer: str
    verdicts: str
    """The labels, in the order of the judgings."""
    labels: Mapping[str | bool, Label]
    """What each label means, exactly; any other is ungraded."""
    variants: str = ""
    """An object of an entry with one answer for each of its keys, such as a cutoff of the search; none: one answer."""


FORMATS = {
    found.name: found
    for found in (
        Format(
            name="locomo-audit",
            licence="eval_results.json of dial481/locomo-audit, CC BY-NC 4.0",
            entries="detailed_results.*.*",
            model="metadata.answer_model",
            judge="metadata.judge_model",
            id="question_id",
            id_pattern=re.compile(r"locomo_(\d+)_qa(\d+)"),
            question="question",
            gold="golden_answer",
            answer="generated_answer",
            verdicts="llm_judgments.*",
            labels={True: "correct", False: "wrong"},
        ),
        Format(
            name="mem0",
            licence="results of mem0ai/memory-benchmarks, Apache-2.0",
            entries="evaluations.*",
            model="metadata.answerer_model",
            judge="metadata.judge_model",
            id="question_id",
            id_pattern=re.compile(r"conv(\d+)_q(\d+)"),
            question="question",
            gold="ground_truth_answer",
            variants="cutoff_results",
            answer="generated_answer",
            verdicts="judgment",
            labels={"CORRECT": "correct", "WRONG": "wrong"},
        ),
    )
}


def at(value: Any, path: str) -> Iterator[Any]:
    """Everything that a path leads to; nothing where it leads nowhere."""
    head, _, rest = path.partition(".")
    if not head:
        yield value
    elif head == "*":
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for child in children:
            yield from at(child, rest)
    elif isinstance(value, dict) and head in value:
        yield from at(value[head], rest)


def first(value: Any, path: str) -> Any:
    """What a path leads to first, or None."""
    return next(at(value, path), None)


def recognise(content: Any) -> Format | None:
    """The format whose paths lead somewhere in this file; None for none."""
    for found in FORMATS.values():
        entry = first(content, found.entries)
        id, asked = first(entry, found.id), first(entry, found.question)
        if isinstance(id, str) and isinstance(asked, str) and found.id_pattern.fullmatch(id):
            return found
    return None
