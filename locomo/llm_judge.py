"""The judge: a language model that says whether an answer means the gold answer, or that it cannot be told.

A label is parsed exactly. Whatever is not a label, and every failed call, is `ungraded` with its reason: a judge that
fails says nothing about the memory. The judge has a model of its own, set here, whoever answers.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dspy

from memometer.models.embedded import TIERS
from memometer.models.errors import FATAL, describe, without_keys
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.usage import metered

Label = Literal["correct", "wrong", "ungraded"]


class Grade(dspy.Signature):
    """What every prompt is shown; its instructions are in PROMPTS."""

    question: str = dspy.InputField()
    gold: str = dspy.InputField()
    answer: str = dspy.InputField()
    verdict: str = dspy.OutputField()


_REPLY = "Reply with one word: yes or no."
_INSTRUCTIONS = {
    "strict": "Does the answer state the same fact as the gold answer? Other words, other date formats and extra "
    "detail are fine; another person, thing, place, number or date is not.",
    "lenient": "Does the answer touch on the same topic as the gold answer? Be generous: a longer or vaguer answer, or "
    "a date in any format or relative form that refers to the same time, counts.",
    "mem0-new": "Does the answer get at what the gold answer says? Accept it if any one item of a list in the gold "
    "answer is in it, if a date in it is at most two weeks away, or if a duration in it is off by at most half. Accept "
    "other words and extra detail.",
    "zep": "Is the answer a match for the gold answer? Grade generously: it may be long, and it matches if it is about "
    "what the gold answer is about. A time matches if both mean the same day or period, one of them relative to "
    "another day and the other a date.",
    "longmemeval": "Does the answer contain the gold answer, or something equal to it? Part of what the gold answer "
    "asks for is not enough. A number of days, weeks or months that is off by one is fine.",
}

PROMPTS: dict[str, type[dspy.Signature]] = {
    name: Grade.with_instructions(f"{text} {_REPLY}") for name, text in _INSTRUCTIONS.items()
}

RULES = {
    "strict": "the answer states the gold's fact, in whatever words",
    "lenient": "the answer touches on the gold's topic: Mem0's first prompt, under which most scores were published",
    "mem0-new": "one item of a list, a date within 14 days, a duration within half are enough: Mem0's later prompt",
    "zep": "as lenient, and a relative time equals the date that it means: Zep's prompt",
    "longmemeval": "the answer contains the whole gold, counts of days may be off by one: LongMemEval's prompt",
}
"""The rule that each prompt follows, in our own words. All but `strict` are there to compare, never to be reported
alone. The published ones ask for a reason before the label; these ask for the label alone."""


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
        # A cached verdict is a replay, and would make any judge look steady. At temperature 0 DSPy's `rollout_id` does
        # not tell repeats apart; without a cache nothing has to.
        self.lm = lm.copy(cache=False) if lm.cache else lm
        self.prompt = prompt
        self.parse = parse_label
        self._grade = dspy.Predict(PROMPTS[prompt])
        self._grade.lm = self.lm

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
        label = self.parse(raw)
        if label == "ungraded" and not reason:
            reason = "the reply is not a label"
        return Verdict(label, without_keys(raw), reason, usage.prompt_tokens, usage.completion_tokens, usage.unreported)

    def record(self, verdict: Verdict, *, key: str = "original", repeat: int = 0) -> dict[str, Any]:
        """The verdict with the judge that gave it and the answer key that it was given, for the run folder."""
        named = {"judge": self.lm.model, "prompt": self.prompt, "prompt_hash": self.prompt_hash}
        return {**named, "key": key, "repeat": repeat, **asdict(verdict)}


FAMILIES = {
    "Qwen": r"qwen|qwq|qvq",
    "GPT": r"(chat)?gpt|o[1-9]\b|davinci",
    "Claude": r"claude",
    "Gemini": r"gemini|gemma",
    "Llama": r"(code)?llama",
    "Mistral": r"(mi|mini|code|magi|dev)stral|mixtral",
    "DeepSeek": r"deepseek",
    "SmolLM": r"smollm",
    "Phi": r"phi-?\d",
    "Command": r"command|aya",
    "Grok": r"grok",
    "Kimi": r"kimi|moonshot",
    "GLM": r"(chat)?glm",
    "Granite": r"granite",
    "Nova": r"nova",
}
"""Family -> how the names of its models begin, or a part of them after a slash, a dash or the like. A model distilled
into another family's weights bears both names, and is of both families."""


def shared_family(one: str, other: str) -> str:
    """The family, or families, that two models belong to by their names; empty for none that is known.

    Models prefer answers of their own kind, so a judge of the reader's family may favour it. Names as for
    `memometer.models.resolve_models.load`: an embedded tier is what its file is, and a model is its own family.
    """
    names = [_file(name).lower() for name in (one, other)]
    shared = [
        family
        for family, pattern in FAMILIES.items()
        if all(re.search(rf"(?<![a-z])(?:{pattern})", name) for name in names)
    ]
    return " and ".join(shared) or (one if names[0] == names[1] else "")


def _file(name: str) -> str:
    """The model's own name, without its provider's and the folders of its file."""
    kind, colon, tier = name.replace("embedded/", "embedded:", 1).partition(":")
    if kind == "embedded" and colon:
        return TIERS[tier].file if tier in TIERS else tier.rsplit("/", 1)[-1]
    return name.partition("/")[2] or name


def parse_label(reply: str) -> Label:
    """`yes` or `no` and nothing else, up to case, spaces, emphasis and a full stop; all else is ungraded.

    A search for the word inside the reply would find a label in any explanation; published harnesses read INCORRECT
    as CORRECT that way.
    """
    labels: dict[str, Label] = {"yes": "correct", "no": "wrong"}
    return labels.get(reply.strip().strip("*`\"'").rstrip(".").lower(), "ungraded")
