"""LOCOMO's official scores: token F1 with rules for some categories, and the two-option form of unanswerable questions.

Source: the evaluation code published with LOCOMO. All functions are pure, so a finished run can be scored again.
"""

from __future__ import annotations

from memometer.benchmarks.metrics import abstains, parts_f1, token_f1
from memometer.benchmarks.protocol import FREE, Question

NOT_MENTIONED = "Not mentioned in the conversation"

ABSTAIN_FIRST, TRAP_FIRST = "abstain-first", "trap-first"
"""The two orders of the options: the abstention first or the adversarial answer first."""


def official_f1(question: Question, prediction: str) -> float:
    """The official score of an answer, 0 to 1.

    In category 1, gold answer and prediction are split at commas. The score is the mean over the gold parts of the
    best F1 with a part of the prediction.
    Category 3 compares with the gold up to its first semicolon. Category 5 is 1.0 for an abstention, otherwise 0.0.
    """
    if question.gold is None:
        return float(abstains(prediction))
    if question.category == "1":
        return parts_f1(prediction, question.gold)
    return token_f1(prediction, reference(question))


def reference(question: Question) -> str:
    """The part of the gold answer that the official score compares with; empty in category 5."""
    gold = question.gold or ""
    return gold.split(";")[0].strip() if question.category == "3" else gold


def options(question: Question, order: str) -> str:
    """The two options that follow a category-5 question in the official multiple-choice form; empty for FREE."""
    if order == FREE:
        return ""
    first, second = _option_texts(question, order)
    return f"Select the correct answer: (a) {first} (b) {second}."


def chosen_option(question: Question, order: str, reply: str) -> str:
    """Return the answer that a reply chooses. A single letter chooses the option of that letter."""
    if order == FREE:
        return reply
    first, second = _option_texts(question, order)
    return {"a": first, "(a)": first, "b": second, "(b)": second}.get(reply.strip().lower(), reply)


def _option_texts(question: Question, order: str) -> tuple[str, str]:
    trap = question.adversarial_answer or ""
    return (NOT_MENTIONED, trap) if order == ABSTAIN_FIRST else (trap, NOT_MENTIONED)
