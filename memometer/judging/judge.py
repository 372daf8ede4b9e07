"""The judge: a language model that decides if an answer means the gold answer.

A reply that is not exactly a label, and every failed call, is `ungraded` with its reason: a judge that fails says
nothing about the memory. The judge has its own model, independent of the reader.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dspy

from memometer.benchmarks.protocol import JudgePrompt
from memometer.models.embedded import TIERS
from memometer.models.errors import FATAL, describe, without_keys
from memometer.models.plain_adapter import PlainAdapter
from memometer.models.usage import metered

Label = Literal["correct", "wrong", "ungraded"]


class Grade(dspy.Signature):
    """The fields of every judge prompt; the instructions come from the benchmark."""

    question: str = dspy.InputField()
    gold: str = dspy.InputField()
    answer: str = dspy.InputField()
    verdict: str = dspy.OutputField()


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
        lm: The judge's own model, at temperature 0.
        prompt: The judge prompt of the benchmark.
    """

    def __init__(self, lm: dspy.LM, prompt: JudgePrompt) -> None:
        # A cached verdict would make every judge look stable. At temperature 0 DSPy's `rollout_id` does not separate
        # repeats, so the cache is off.
        self.lm = lm.copy(cache=False) if lm.cache else lm
        self.prompt = prompt.name
        self.instructions = prompt.instructions
        self.parse = parse_label
        self._grade = dspy.Predict(Grade.with_instructions(prompt.instructions))
        self._grade.lm = self.lm

    @property
    def prompt_hash(self) -> str:
        """Identifies the exact prompt."""
        return hashlib.sha256(self.instructions.encode()).hexdigest()[:16]

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
