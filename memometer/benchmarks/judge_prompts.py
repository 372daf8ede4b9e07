"""Judge prompts for questions about conversations: a strict one, and the rules of published evaluations.

`memometer.judging.judge` asks the judge model. The published prompts ask for a reason before the label; these state the
same rules in our words and ask for the label alone.
"""

from __future__ import annotations

from memometer.benchmarks.protocol import JudgePrompt

_REPLY = "Reply with one word: yes or no."
_INSTRUCTIONS = {
    "strict": "Does the answer state the same fact as the gold answer? Other words, other date formats and extra "
    "detail are fine. Another person, thing, place, number or date is not, and neither is an answer that is vaguer "
    "than the gold answer or names several candidates.",
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
_RULES = {
    "strict": "the answer states the same fact as the gold answer, in any words",
    "lenient": "the answer touches on the topic of the gold answer: Mem0's first prompt, the commonest",
    "mem0-new": "one item of a list, a date within 14 days or a duration within half is enough: Mem0's later prompt",
    "zep": "as lenient, and a relative time equals the date that it means: Zep's prompt",
    "longmemeval": "the answer contains the whole gold answer, a count of days may be off by one: LongMemEval's prompt",
}

PROMPTS = {name: JudgePrompt(name, f"{text} {_REPLY}", _RULES[name]) for name, text in _INSTRUCTIONS.items()}
"""Name -> prompt. Report `strict`; the others show how much a score depends on the prompt."""
