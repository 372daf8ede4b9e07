"""The judge: a language model that says whether an answer means the gold answer, or that it cannot be told.

A label is parsed exactly. Whatever is not a label, and every failed call, is `ungraded` with its reason: a judge that
fails says nothing about the memory. The judge has a model of its own, set here, whoever answers.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dspy

from language_models.failure import FATAL, describe, without_keys
from language_models.meter import metered
from language_models.plain_adapter import PlainAdapter

Label = Literal["correct", "wrong", "ungraded"]


class Strict(dspy.Signature):
    """Does the answer state the same fact as the gold answer? Other words, other date formats and extra detail are \
fine; another person, thing, place, number or date is not. Reply with one word: yes or no."""

    question: str = dspy.InputField()
    gold: str = dspy.InputField()
    answer: str = dspy.InputField()
    verdict: str = dspy.OutputField()


class Lenient(dspy.Signature):
    """Does the answer touch on the same topic as the gold answer? Be generous: a longer or vaguer answer, or a date \
in any format or relative form that refers to the same time, counts. Reply with one word: yes or no."""

    question: str = dspy.InputField()
    gold: str = dspy.InputField()
    answer: str = dspy.InputField()
    verdict: str = dspy.OutputField()


PROMPTS: dict[str, type[dspy.Signature]] = {"strict": Strict, "lenient": Lenient}
"""`lenient` follows, in our own words, the rule under which most published LOCOMO scores were made: what touches on the
gold answer's topic is correct. It is here to compare, never to be reported alone."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`label`, the judge's raw reply, the reason where it is ungraded, and what the call cost in tokens; `unreported`
    calls are those whose tokens nobody reported."""

    label: Label
    raw: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreported: int = 0


class Judge:
    """Grades one answer at a time; safe to share between threads.

    Args:
        lm: the judge's own model, at temperature 0.
        prompt: a name in PROMPTS.
    """

    def __init__(self, lm: dspy.LM, *, prompt: str = "strict") -> None:
        self.lm = lm
        self.prompt = prompt
        self._grade = dspy.Predict(PROMPTS[prompt])
        self._grade.lm = lm

    @property
    def prompt_hash(self) -> str:
        """Identifies the exact prompt."""
        return hashlib.sha256(PROMPTS[self.prompt].instructions.encode()).hexdigest()[:16]

    def __call__(self, question: str, gold: str, answer: str) -> Verdict:
        """Grade `answer`. A failed call is `ungraded`, with the reason; only what would fail every call is raised."""
        raw, reason = "", ""
        with metered() as usage, dspy.context(adapter=PlainAdapter(), disable_history=True):
            try:
                raw = self._grade(question=question, gold=gold, answer=answer).verdict
            except FATAL:
                raise
            except Exception as error:  # noqa: BLE001 - any failure of the judge is ungraded, never wrong
                reason = describe(error)
        label = parse_label(raw)
        if label == "ungraded" and not reason:
            reason = "the reply is not a label"
        return Verdict(label, without_keys(raw), reason, usage.prompt_tokens, usage.completion_tokens, usage.unreported)

    def record(self, verdict: Verdict) -> dict[str, Any]:
        """The verdict with the judge that gave it, for the run folder."""
        return {"judge": self.lm.model, "prompt": self.prompt, "prompt_hash": self.prompt_hash, **asdict(verdict)}


def parse_label(reply: str) -> Label:
    """`yes` or `no` and nothing else, up to case, spaces, emphasis and a full stop; all else is ungraded.

    A search for the word inside the reply would find a label in any explanation; published harnesses read INCORRECT
    as CORRECT that way.
    """
    labels: dict[str, Label] = {"yes": "correct", "no": "wrong"}
    return labels.get(reply.strip().strip("*`\"'").rstrip(".").lower(), "ungraded")
