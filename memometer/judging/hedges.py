"""The hedge detector: answers that name several candidates, or refuse and answer in the same breath."""

from __future__ import annotations

import re
from datetime import date
from itertools import pairwise
from typing import Literal

from memometer.benchmarks.metrics import abstains, normalize
from memometer.judging.right_answers import LEADING_NUMBER
from memometer.retrieval.dates import find

Hedge = Literal["several dates", "several numbers", "several candidates", "refuses and answers"]

HEDGES: tuple[Hedge, ...] = ("several dates", "several numbers", "several candidates", "refuses and answers")

_ALTERNATIVES = re.compile(
    r"\beither\b.+\bor\b|"
    r"\b(?:maybe|perhaps|possibly|might be|could be)\b.+(?:\bor\b|,|;|\b(?:maybe|perhaps|possibly)\b)|"
    r"\bor (?:else|possibly|perhaps|maybe|alternatively)\b|\bnot sure (?:which|whether)\b|"
    r"\bone of (?:these|the following)\b",
    re.IGNORECASE | re.DOTALL,
)
_REFUSAL = re.compile(
    r"\b(?:(?:do|does|did)(?:n't| not) (?:have|contain|mention|say|specify|know)|"
    r"(?:not|n't) (?:sure|mentioned|enough|clear|specified|available)|"
    r"no (?:information|mention|record)|unclear|unknown|cannot (?:say|tell|determine|find))\b",
    re.IGNORECASE,
)
_ANSWERS = re.compile(
    r"\b(?:but|however|although|though|perhaps|probably|possibly|likely|best guess|might|may)\b", re.I
)
_ANY_DAY = date(2000, 1, 1)


def hedge(question: str, gold: str, answer: str) -> Hedge | None:
    """Find out if an answer hedges. A form that the question or the gold answer has too is not a hedge.

    Args:
        question: The question.
        gold: The gold answer.
        answer: The answer.

    Returns:
        The kind of the hedge, or None.
    """
    if _refuses_and_answers(answer) and not _REFUSAL.search(gold):
        return "refuses and answers"
    expected = f"{question} {gold}"
    if _has_alternative_dates(answer) and not _has_alternative_dates(expected):
        return "several dates"
    if _ALTERNATIVES.search(answer) and not _ALTERNATIVES.search(expected):
        return "several candidates"
    if answer.count(";") >= 2 and expected.count(";") < 2 and len(answer) < 400:
        return "several candidates"
    parts = [part.strip() for part in re.split(r"\s+or\s+|;", answer) if part.strip()]
    if len(parts) > 1 and not re.search(r"\bor\b", expected) and all(len(normalize(part)) <= 6 for part in parts):
        numbers = [part for part in parts if LEADING_NUMBER.match(part)]
        return "several numbers" if len(numbers) == len(parts) else "several candidates"
    return None


_BETWEEN_DATES = re.compile(r"\s*(?:,?\s*or\s+(?:(?:in|on|around|maybe|perhaps|possibly)\s+)?|[;/,]\s*)", re.IGNORECASE)


def _has_alternative_dates(text: str) -> bool:
    """True if a text names different dates one after the other, with nothing but a comma or `or` between them."""
    found = [when for when in find(text, _ANY_DAY) if not when.relative]
    return any(
        (a.start, a.end) != (b.start, b.end) and _BETWEEN_DATES.fullmatch(text[a.span[1] : b.span[0]])
        for a, b in pairwise(sorted(found, key=lambda when: when.span))
    )


def _refuses_and_answers(answer: str) -> bool:
    """True if an answer has a refusal and, after it, a word that introduces a guess."""
    refusal = _REFUSAL.search(answer)
    if not refusal and not abstains(answer):
        return False
    rest = answer[refusal.end() :] if refusal else answer
    guess = _ANSWERS.search(rest)
    return guess is not None and bool(normalize(rest[guess.end() :]))
