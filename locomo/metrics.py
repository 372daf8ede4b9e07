"""The deterministic metrics: the official token F1, category 5 in both official forms, and evidence recall.

Everything here is a pure function of stored answers, so that a finished run can be scored again without a model.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache

from locomo.dataset import Question
from memometer.retrieval.tokenize import stem

ABSTENTION = "No information available"
NOT_MENTIONED = "Not mentioned in the conversation"

FREE, ABSTAIN_FIRST, TRAP_FIRST = "free", "abstain-first", "trap-first"
"""The forms in which a category-5 question is asked: freely, or as two options in either order."""


def normalize(text: str) -> list[str]:
    """The official normalisation: no commas, punctuation or articles (and no `and`), lowercased, Porter-stemmed."""
    text = text.replace(",", "").lower()
    text = "".join(character for character in text if character not in string.punctuation)
    text = re.sub(r"\b(a|an|the|and)\b", " ", text)
    return [stem(word) for word in text.split()]


@lru_cache(maxsize=1 << 17)  # every cut of a report looks at the same answers again
def token_f1(prediction: str, gold: str) -> float:
    """Multiset F1 over normalised tokens, 0 to 1."""
    predicted, expected = normalize(prediction), normalize(gold)
    same = (Counter(predicted) & Counter(expected)).total()
    return 2 * same / (len(predicted) + len(expected)) if same else 0.0


def official_f1(question: Question, prediction: str) -> float:
    """The official score of an answer, 0 to 1. Source: the evaluation code published with LOCOMO.

    Category 1 averages, over the gold's comma-separated parts, the best F1 of any part of the prediction;
    category 3 counts the gold up to its first semicolon; category 5 is 1.0 for an abstention, else 0.0.
    """
    if question.gold is None:
        return float(abstains(prediction))
    if question.category == 1:
        parts = [part.strip() for part in prediction.split(",")]
        golds = [gold.strip() for gold in question.gold.split(",")]
        return sum(max(token_f1(part, gold) for part in parts) for gold in golds) / len(golds)
    gold = question.gold.split(";")[0].strip() if question.category == 3 else question.gold
    return token_f1(prediction, gold)


def abstains(answer: str) -> bool:
    """Whether an answer is an abstention by the official rule."""
    lowered = answer.lower()
    return "no information available" in lowered or "not mentioned" in lowered


def options(question: Question, form: str) -> str:
    """The two options that follow a category-5 question in the official multiple-choice form; empty when `free`."""
    if form == FREE:
        return ""
    first, second = _option_texts(question, form)
    return f"Select the correct answer: (a) {first} (b) {second}."


def chosen_option(question: Question, form: str, reply: str) -> str:
    """The answer that a reply stands for: a bare letter is its option's text, as in the official code."""
    if form == FREE:
        return reply
    first, second = _option_texts(question, form)
    return {"a": first, "(a)": first, "b": second, "(b)": second}.get(reply.strip().lower(), reply)


def _option_texts(question: Question, form: str) -> tuple[str, str]:
    trap = question.adversarial_answer or ""
    return (NOT_MENTIONED, trap) if form == ABSTAIN_FIRST else (trap, NOT_MENTIONED)


def evidence_recall(evidence: Sequence[str], shown: Collection[str]) -> float | None:
    """The share of the evidence turns that were shown; None where there is no evidence, which is not 1.0."""
    if not evidence:
        return None
    return sum(id in shown for id in evidence) / len(evidence)
