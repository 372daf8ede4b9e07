"""Answers that are wrong by rule, before a judge is called: bare labels, echoes of the question, words to the judge.

Small judges accept such answers, and no correct answer has these forms. The lexical judge, a baseline, is here too.
"""

from __future__ import annotations

import re
from typing import Literal

from memometer.benchmarks.metrics import comparable, normalize
from memometer.judging.right_answers import OPINION

AnswerRule = Literal["bare label", "echo", "addresses the judge"]
"""The reason why an answer is wrong without a call."""

RULES: tuple[AnswerRule, ...] = ("bare label", "echo", "addresses the judge")

_LABEL = r"(?:yes|no|correct|right|true|accurate|accepted?|pass(?:ed)?|wrong|incorrect|false)"
_NAMED_LABEL = r"(?:verdict|grade|grading|label|judge?ment|judge|score|rating|evaluation|result|decision|match)"
_BARE = re.compile(
    rf"\W*(?:{_NAMED_LABEL}\s*[:=]?\s*)?(?:it\s+is\s+|this\s+is\s+|that\s+is\s+)?{_LABEL}\W*", re.IGNORECASE
)
_LAST_LINE = re.compile(rf"\W*{_LABEL}\W*", re.IGNORECASE)

_TO_THE_JUDGE = re.compile(
    "|".join(
        (
            rf"\b{_NAMED_LABEL}\s*[\"'*_]*\s*[:=]+>?\s*[\"'*_]*\s*{_LABEL}\b",
            rf"\b{_NAMED_LABEL}\s+(?:for\s+\w+\s+)?(?:is|should\s+be|must\s+be)\s*:?\s*[\"'*_]*{_LABEL}\b",
            r"</?(?:answer|gold|question|system|instructions?|user|assistant|verdict)[^>]*>",
            r"<\|\w+\|>|\[/?(?:INST|SYSTEM)\]|^\W*(?:system|assistant)\s*:",
            r"\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:above|previous|prior|earlier|rules?|instructions?|"
            r"prompt)\b",
            r"\b(?:reply|respond|answer|output|print|return)\s+(?:with\s+|only\s+|just\s+)*[\"'*]*(?:yes|correct)\b",
            r"\b(?:mark|grade|rate|score|judge|label|count|accept|treat|consider)\s+(?:this|it|that|the|my)\b.{0,30}"
            r"\b(?:correct|right|yes|true|valid|accurate|match(?:ing)?)\b",
            r"\b(?:gold|reference|expected|ground[- ]truth)\s+(?:answer|label|solution)\b",
            r"\b(?:this|the|my|that)\s+(?:answer|reply|response)\s+(?:is|was|matches|equals|should\s+be)\s+(?:\w+\s+){0,2}"
            r"(?:correct|right|accepted|valid|same|equal|match)\b",
            r"\bstates?\s+the\s+same\s+fact\b",
            r"\b(?:dear|attention|note\s+to(?:\s+the)?)\s+(?:judge|grader|evaluator)\b|"
            r"\b(?:the|a)\s+(?:grader|evaluator|judge)\s+(?:has|have|confirmed|agreed|agrees|accepts|accepted|should|must)\b",
        )
    ),
    re.IGNORECASE | re.MULTILINE,
)  # fmt: skip

_FUNCTION_WORDS = frozenset(
    normalize(
        "the a an of to in on at for from with by and or is are was were be been do does did has have had it its this "
        "that these those there what when where who whom whose which why how you your i me my question answer asked "
        "ask about would could should will can they them their he she his her as so if then than just"
    )
)
_YES_NO_QUESTION = re.compile(
    r"(?:^|,\s*)(?:is|are|was|were|do|does|did|has|have|had|can|could|would|will|should)\b", re.IGNORECASE
)
MOST_OF_THE_QUESTION = 0.8
"""Share of a question's content words that an echo has."""


def broken_rule(question: str, gold: str, answer: str) -> AnswerRule | None:
    """Return the rule by which an answer is wrong, or None if a judge must read it.

    A gold answer or question that has the same form makes the rule void, such as a gold answer "Yes" for a bare label.

    Args:
        question: The question.
        gold: The gold answer.
        answer: The answer to grade.
    """
    expects_label = bool(
        OPINION.match(gold.strip()) or _BARE.fullmatch(gold.strip()) or _YES_NO_QUESTION.search(question.strip())
    )
    if _BARE.fullmatch(answer.strip()) and not expects_label:
        return "bare label"
    if _addresses_the_judge(answer, expects_label) and not _addresses_the_judge(f"{gold}\n{question}", True):
        return "addresses the judge"
    return "echo" if _is_echo(question, gold, answer, expects_label) else None


def _addresses_the_judge(text: str, expects_label: bool) -> bool:
    if _TO_THE_JUDGE.search(text):
        return True
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) > 1 and not expects_label and bool(_LAST_LINE.fullmatch(lines[-1]))


def _is_echo(question: str, gold: str, answer: str, expects_label: bool) -> bool:
    """True if an answer repeats the question and adds no content word, unless the gold answer is in the question."""
    bare = comparable(question).rstrip("? .")
    if bare and comparable(answer).strip("\"'? .") == bare:
        return True
    asked = set(normalize(question)) - _FUNCTION_WORDS
    given = set(normalize(answer)) - _FUNCTION_WORDS
    if not asked or not given or given - asked or len(given) < MOST_OF_THE_QUESTION * len(asked):
        return False
    if "?" in answer or re.match(r"\W*(?:you asked|the question)", answer, re.IGNORECASE):
        return True
    # "Anna prefers tea" answers "Does Anna prefer tea or coffee?".
    return not expects_label and not set(normalize(gold)) - _FUNCTION_WORDS <= asked


LEXICAL = "lexical"
"""Name of the baseline judge without a model."""


def lexical_label(gold: str, answer: str) -> Literal["correct", "wrong"]:
    """Grade by words alone: correct if all words of the gold answer are in the answer.

    The baseline of every judge. It cannot pass a calibration, because it accepts the gold answer among others.

    Args:
        gold: The gold answer.
        answer: The answer to grade.
    """
    words = set(normalize(gold))
    return "correct" if words and words <= set(normalize(answer)) else "wrong"
