"""What a reply is worth in training: a pure function of the facts of its prompt, without a judge.

    parsed as evaluate.py would read it; nothing to read                        -1
    answered, answerable        0.8 A + 0.2 E x decay, less 0.1 for each 128 tokens beyond the gold and 12 more,
                                and 0.05 more for each halving of the memory, where A is above 0.5
    absent, answerable          0 where all evidence is shown, else 0.05 in the last round and 0 before
    absent, unanswerable        1; answered 0
    more, before the last round 0 where all evidence is shown (or the question is unanswerable), else 0.45

A is the best over the keys of token F1, list F1 and equal dates (memometer.benchmarks.reward); E the F1 of the
cited lines against
the evidence that is shown; decay falls from 1 to 0 over the first half of the training. A prompt that asks for no lines
gives A instead of the sum. No length is rewarded anywhere, and none is punished but in an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from memometer import benchmarks
from memometer.benchmarks.metrics import abstains
from memometer.benchmarks.protocol import Question
from memometer.benchmarks.reward import (
    ANSWER_WEIGHT,
    CITATION_WEIGHT,
    RIGHT,
    RIGHTLY_ABSENT,
    Reply,
    answer_score,
    citation_score,
)
from memometer.models.plain_adapter import PlainAdapter
from memometer.reader.signatures import ABSTENTION, Answer, CitedAnswer, MultiRound
from memometer.token_counters import counter_for

UNPARSEABLE = -1.0
MORE = 0.45
"""Of asking for more where it is needed, until the next round's mean is known."""
SMALLER = 0.05
"""For each halving of the memory, where the answer is right."""
FREE_TOKENS, TOKENS, PRICE = 12, 128, 0.1

SIGNATURES: dict[str, type[dspy.Signature]] = {"answer": Answer, "read": CitedAnswer, "read_on": MultiRound}


@dataclass(frozen=True, slots=True)
class Case:
    """The facts of one prompt, as JSON can hold them. `keys` are the accepted answers, none for an unanswerable
    question; `evidence` and `shown` turn ids, the latter by line number; `form` names the signature; `halvings` is how
    often the memory was halved from the largest budget."""

    category: str
    keys: tuple[str, ...]
    evidence: tuple[str, ...]
    shown: tuple[str, ...]
    form: str
    offers_more: bool = False
    halvings: int = 0
    benchmark: str = benchmarks.DEFAULT

    @property
    def answerable(self) -> bool:
        """True if there is an accepted answer."""
        return bool(self.keys)

    @property
    def complete(self) -> bool:
        """Whether all the evidence is shown."""
        return set(self.evidence) <= set(self.shown)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Case:
        """Lists or arrays, as file formats give them back, for tuples."""
        found = {field.name: value[field.name] for field in fields(cls) if field.name != "benchmark"}
        found |= {"category": str(found["category"]), "benchmark": value.get("benchmark", benchmarks.DEFAULT)}
        sequences = {name: tuple(map(str, found[name])) for name in ("keys", "evidence", "shown")}
        return cls(**{**found, **sequences})


@dataclass(frozen=True, slots=True)
class Grade:
    """What a reply came to. `status` is answered, absent, more or unparseable; `f1` the official one and `strict` 1
    where the answer is a key's words or its date, or rightly abstains: neither is what is trained on. `tokens` is the
    length of the reply (o200k_base)."""

    reward: float
    status: str
    answer: str
    f1: float
    strict: float
    tokens: int


@cache
def _counter() -> Callable[[str], int]:
    return counter_for()


def grade(case: Case, completion: str, *, progress: float = 0.0, more: float = MORE) -> Grade:
    """Grade one completion.

    Args:
        progress: of the training, 0 to 1.
        more: what asking for more is worth where it is needed.
    """
    tokens = _counter()(completion)
    try:
        said = PlainAdapter().parse(SIGNATURES[case.form], completion)
    except AdapterParseError:
        return Grade(UNPARSEABLE, "unparseable", "", 0.0, 0.0, tokens)
    answer: str = said["answer"]
    answerable = case.answerable
    if case.offers_more and said.get("status") == "more":
        needed = answerable and not case.complete
        return Grade(more if needed else 0.0, "more", answer, 0.0, 0.0, tokens)
    if said.get("status") == "absent" or abstains(answer):
        worth = 1.0 if not answerable else RIGHTLY_ABSENT if not (case.complete or case.offers_more) else 0.0
        return Grade(worth, "absent", ABSTENTION, float(not answerable), float(not answerable), tokens)
    if not answerable:
        return Grade(0.0, "answered", answer, 0.0, 0.0, tokens)
    questions = [_question(case, key) for key in case.keys]
    right = max(answer_score(question, answer) for question in questions)
    cited = tuple(case.shown[line - 1] for line in said.get("lines", ()) if 1 <= line <= len(case.shown))
    value = right
    if "lines" in said:
        decay = max(0.0, 1.0 - 2 * progress)
        evidence = citation_score(questions[0], Reply(answer, case.shown, 0, cited=tuple(dict.fromkeys(cited))))
        value = ANSWER_WEIGHT * right + CITATION_WEIGHT * evidence * decay
    beyond = tokens - max(_counter()(key) for key in case.keys) - FREE_TOKENS
    value -= PRICE * max(0, beyond) / TOKENS
    if right > RIGHT:
        value += SMALLER * case.halvings
    f1 = max(question.score(answer) for question in questions)
    return Grade(value, "answered", answer, f1, float(right == 1.0), tokens)


def reward(case: Case, completion: str) -> float:
    """The number alone, at the start of the training: what engines of others call."""
    return grade(case, completion).reward


def gold_reply(case: Case) -> str:
    """What an honest reader replies that knows the evidence: the gold where all of it is shown, with its lines; else
    more, where it is offered, else absent. The gold is the part that the official score
    compares with."""
    absent = not case.answerable
    key = "" if absent else _question(case, case.keys[0]).reference
    status = "absent" if absent else "answered" if case.complete else "more" if case.offers_more else "absent"
    there = [case.shown.index(id) + 1 for id in case.evidence if id in case.shown]
    values = {
        "lines": [] if absent else sorted(there),
        "status": status,
        "lookup": "",
        "answer": key if status == "answered" else ABSTENTION,
    }
    signature = SIGNATURES[case.form]
    outputs = {name: values[name] for name in signature.output_fields}
    return PlainAdapter().format_assistant_message_content(signature, outputs)


def _question(case: Case, key: str) -> Question:
    return benchmarks.load(case.benchmark).question_type("", 0, "", case.category, key, case.evidence)
