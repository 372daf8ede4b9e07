"""Formats of published result files with one entry per question: a small table with the path of each value.

A benchmark lists the formats of its own files in `Benchmark.result_formats`; the formats of evaluation tools are here;
and a user can write the table of any other file as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from memometer.errors import UserError
from memometer.judging.judge import Label

LABELS: Mapping[str | bool | float, Label] = {
    True: "correct", False: "wrong", "CORRECT": "correct", "WRONG": "wrong", "INCORRECT": "wrong", "correct": "correct",
    "wrong": "wrong", "incorrect": "wrong", "yes": "correct", "no": "wrong", "C": "correct", "I": "wrong",
}  # fmt: skip
"""The usual labels; 1 and 0 equal True and False."""


@dataclass(frozen=True, slots=True)
class Format:
    """The paths of one format.

    A path is a sequence of keys with dots between them; `*` means every value of an object or element of a list.
    `entries`, `model` and `judge` start at the file, the others at an entry, and `answer` and `verdicts` at a variant.
    An entry is matched to its question by its id, or without one by its text and gold answer: the first entry with a
    text belongs to the first question with it, in the order of the data.

    Attributes:
        name: Name of the format.
        answer: Path of the answer.
        question: Path of the question; empty if the id alone identifies it.
        entries: Path of the entries.
        licence: Source and licence of such files.
        model: Path of the name of the model that answered; empty if the file does not name it.
        judge: Path of the name of the judge model; empty if the file does not name it.
        id: Path of the entry's id; empty to match by text.
        id_pattern: Two groups: the positions, from 0, of the conversation and of the question in it. None if the id is
            that of the question or of its conversation.
        gold: Path of the gold answer; empty if the file has none.
        verdicts: Path of the labels, in the order of the judgements; empty if the file has none.
        labels: Label in the file -> label here; any other means that there is no verdict.
        variants: Path of an object with one answer per key, such as a search cutoff; empty for one answer.
    """

    name: str
    answer: str
    question: str = ""
    entries: str = "*"
    licence: str = "unknown licence"
    model: str = ""
    judge: str = ""
    id: str = ""
    id_pattern: re.Pattern[str] | None = None
    gold: str = ""
    verdicts: str = ""
    labels: Mapping[str | bool | float, Label] = field(default_factory=lambda: LABELS)
    variants: str = ""


TOOL_FORMATS = {
    found.name: found
    for found in (
        Format(
            name="omnimemeval",
            licence="judged file of OmniMemEval",
            entries="*.*",
            question="question",
            gold="golden_answer",
            answer="answer",
            verdicts="llm_judgments.*",
        ),
        Format(
            name="memory-json",
            licence="results in the layout of mem0's evaluation, which Zep, Memobase, LangMem and others share",
            entries="*.*",
            question="question",
            gold="answer",
            answer="response",
            verdicts="llm_score",
        ),
        Format(
            name="longmemeval",
            licence="results of LongMemEval's evaluate_qa.py",
            id="question_id",
            answer="hypothesis",
            judge="0.autoeval_label.model",
            verdicts="autoeval_label.label",
        ),
        Format(
            name="inspect",
            licence="log of inspect_ai",
            entries="samples.*",
            model="eval.model",
            id="id",
            question="input",
            gold="target",
            answer="output.choices.*.message.content",
            verdicts="scores.*.value",
        ),
        Format(
            name="lm-eval",
            licence="samples of lm-evaluation-harness (--log_samples)",
            question="doc.question",
            gold="target",
            answer="filtered_resps.*",
            verdicts="exact_match",
        ),
    )
}
"""Formats of evaluation tools, for every benchmark."""


class FormatError(UserError, ValueError):
    """A table of a format cannot be used."""


def of_file(path: Path) -> Format:
    """Read the table of a format from a JSON file with the fields of `Format`.

    Raises:
        FormatError: The file cannot be read, or a field is unknown, missing or not of its type.
    """
    known = {one.name for one in fields(Format)}
    try:
        table = json.loads(path.read_bytes())
        if not isinstance(table, dict):
            raise FormatError(f"--format {path}: the table must be an object with {', '.join(sorted(known))}.")
        if unknown := sorted(set(table) - known):
            raise FormatError(f"--format {path}: {unknown[0]} is unknown; allowed are {', '.join(sorted(known))}.")
        texts = [name for name, value in table.items() if name != "labels" and not isinstance(value, str)]
        if texts or not table.get("answer") or not (table.get("question") or table.get("id")):
            name = texts[0] if texts else "answer" if not table.get("answer") else "question"
            raise FormatError(f'--format {path}: {name} must be a path such as "items.*.{name}", as text.')
        pattern = re.compile(table["id_pattern"]) if table.get("id_pattern") else None
        if pattern and pattern.groups != 2:
            raise FormatError(f"--format {path}: id_pattern must have two groups, for conversation and question.")
        labels = table.get("labels", {})
        if not isinstance(labels, dict) or any(v not in ("correct", "wrong", "missing") for v in labels.values()):
            raise FormatError(f'--format {path}: labels maps the file\'s labels to "correct" or "wrong".')
        return Format(**{"name": path.stem, **table, "id_pattern": pattern, "labels": {**LABELS, **labels}})
    except OSError as error:
        raise FormatError(f"--format {path} cannot be read ({error.strerror}).") from error
    except (ValueError, re.error) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"--format {path} is not a table in JSON ({error}).") from error


def at(value: Any, path: str) -> Iterator[Any]:
    """Yield every value at a path."""
    head, _, rest = path.partition(".")
    if not head:
        yield value
    elif head == "*":
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for child in children:
            yield from at(child, rest)
    elif isinstance(value, dict) and head in value:
        yield from at(value[head], rest)
    elif isinstance(value, list) and head.isdecimal() and int(head) < len(value):
        yield from at(value[int(head)], rest)


def first(value: Any, path: str) -> Any:
    """Return the first value at a path, or None."""
    return next(at(value, path), None)


def named(value: Any, path: str) -> Any:
    """Return the first value at a path; None if the format has no such path."""
    return first(value, path) if path else None


def recognise(content: Any, formats: Iterable[Format]) -> Format | None:
    """Find the format whose paths exist in a file; None if there is none."""
    return next((found for found in formats if _fits(content, found)), None)


def _fits(content: Any, found: Format) -> bool:
    entry = first(content, found.entries)
    if not isinstance(entry, dict):
        return False
    if found.id:
        id = first(entry, found.id)
        if not isinstance(id, str | int) or (found.id_pattern and not found.id_pattern.fullmatch(str(id))):
            return False
    variant = next(iter((named(entry, found.variants) or {"": entry}).values()), None)
    paths = [(entry, found.question), (entry, found.gold), (variant, found.answer)]
    return all(any(True for _ in at(value, path)) for value, path in paths if path)


def outline(content: Any) -> str:
    """Describe the keys of a file's first entry, for the message that asks for a table."""
    path: list[str] = []
    value = content
    for _ in range(4):
        if isinstance(value, list) and value:
            path, value = [*path, "*"], value[0]
        elif isinstance(value, dict) and value:
            lists = {k: v for k, v in value.items() if isinstance(v, list | dict) and v}
            if len(lists) < len(value) / 2 or not lists:
                break
            same = len({type(v) for v in value.values()}) == 1
            key = max(lists, key=lambda name: len(lists[name]))
            path, value = [*path, "*" if same else key], lists[key]
        else:
            break
    keys = ", ".join(list(value)[:12]) if isinstance(value, dict) else type(value).__name__
    return f"entries {'.'.join(map(str, path)) or 'at the top'} with {keys}"
