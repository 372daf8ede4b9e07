"""Formats of published result files with one entry per question: the path of each value in the file.

A benchmark lists the formats of its files in `Benchmark.result_formats`. A format must name conversation and question
by number, because a benchmark may ask the same text twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from memometer.judging.judge import Label


@dataclass(frozen=True, slots=True)
class Format:
    """The paths of one format.

    A path is a sequence of keys with dots between them; `*` means every value of an object or element of a list.
    `entries`, `model` and `judge` start at the file, the others at an entry, and `answer` and `verdicts` at a variant.

    Attributes:
        name: Name of the format.
        licence: Source and licence of such files.
        entries: Path of the entries.
        model: Path of the name of the model that answered.
        judge: Path of the name of the judge model.
        id: Path of the entry's id.
        id_pattern: Two groups: the positions, from 0, of the conversation and of the question in it.
        question: Path of the question.
        gold: Path of the gold answer.
        answer: Path of the answer.
        verdicts: Path of the labels, in the order of the judgements.
        labels: Label in the file -> label here; any other means that there is no verdict.
        variants: Path of an object with one answer per key, such as a search cutoff; empty for one answer.
    """

    name: str
    licence: str
    entries: str
    model: str
    judge: str
    id: str
    id_pattern: re.Pattern[str]
    question: str
    gold: str
    answer: str
    verdicts: str
    labels: Mapping[str | bool, Label]
    variants: str = ""


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


def first(value: Any, path: str) -> Any:
    """Return the first value at a path, or None."""
    return next(at(value, path), None)


def recognise(content: Any, formats: Iterable[Format]) -> Format | None:
    """Find the format whose paths exist in a file; None if there is none."""
    for found in formats:
        entry = first(content, found.entries)
        id, asked = first(entry, found.id), first(entry, found.question)
        if isinstance(id, str) and isinstance(asked, str) and found.id_pattern.fullmatch(id):
            return found
    return None
