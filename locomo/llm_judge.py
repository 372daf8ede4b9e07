"""The judge: a language model that says whether an answer means the gold answer, or that it cannot be told.

A label is parsed exactly. Whatever is not a label, and every failed call, is `ungraded` with its reason: a judge that
fails says nothing about the memory. The judge's model is its own, never the one that answers.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dspy

from language_models.failure import FATAL, describe
from language_models.meter import metered
from language_models.plain_adapter import PlainAdapter

Label = Literal["correct", "wrong", "ungraded"]


class Strict(dspy.Signature):
    """Grade an answer to a question against the gold answer. Reply with one word: CORRECT or WRONG.
    CORRECT: the answer states the same fact as the gold answer, in any words or date format, and nothing that contradicts it.
    WRONG: it names another person, thing, place, number or date, leaves out an item of a list, is vague where the gold answer \
is specific, gives several answers of which only some are right, or says that it does not know."""

    question: str = dspy.InputField()
    gold: str = dspy.InputField()
    answer: str = dspy.InputField()
    verdict: str = dspy.OutputField()


class Lenient(dspy.Signature):
    """Grade an answer to a question against the gold answer. Reply with one word: CORRECT or WRONG.
    Be generous: as long as the answer touches on the same topic as the gold answer, it is CORRECT, however long it is.
    For questions about time, an answer that refers to the same date or period, in any format or relative form, is CORRECT."""

    question: str = dspy.InputField()
    gold: str = dspy.InputField()
    answer: str = dspy.InputField()
    verdict: str = dspy.OutputField()


PROMPTS: dict[str, type[dspy.Signature]] = {"strict": Strict, "lenient": Lenient}
"""`lenient` follows the rule under which most published LOCOMO scores were made, in our own words. It accepts most
vague wrong answers; it is here to compare, never to be reported alone."""

EXAMPLES = tuple(
    dspy.Example(question=question, gold=gold, answer=answer, verdict=verdict)
    for question, gold, answer, verdict in (
        ("When did Priya adopt a puppy?", "5 March 2021", "On the 5th of March, 2021", "CORRECT"),
        ("When did Priya adopt a puppy?", "5 March 2021", "6 March 2021", "WRONG"),
        ("What does Tom bake on weekends?", "Sourdough", "He likes to bake sourdough bread.", "CORRECT"),
        ("What does Tom bake on weekends?", "Sourdough", "Chocolate cake", "WRONG"),
    )
)
"""Written for this project; every prompt carries them, because the small judges only answer in form when shown."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`label`, the judge's raw reply, the reason where it is ungraded, and what the call cost in tokens."""

    label: Label
    raw: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


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
        self._grade.demos = list(EXAMPLES)
        self._grade.lm = lm

    @property
    def prompt_hash(self) -> str:
        """Identifies the exact prompt, examples included."""
        text = PROMPTS[self.prompt].instructions + "".join(str(sorted(demo.toDict().items())) for demo in EXAMPLES)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

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
        return Verdict(label, raw, reason, usage.prompt_tokens, usage.completion_tokens)

    def record(self, verdict: Verdict) -> dict[str, Any]:
        """The verdict with the judge that gave it, for the run folder."""
        return {"judge": self.lm.model, "prompt": self.prompt, "prompt_hash": self.prompt_hash, **asdict(verdict)}


def parse_label(reply: str) -> Label:
    """CORRECT or WRONG and nothing else, up to case, spaces, emphasis and a full stop; all else is ungraded.

    A substring search would read INCORRECT as CORRECT, which published harnesses did.
    """
    word = reply.strip().strip("*`\"'").rstrip(".").upper()
    labels: dict[str, Label] = {"CORRECT": "correct", "WRONG": "wrong"}
    return labels.get(word, "ungraded")

