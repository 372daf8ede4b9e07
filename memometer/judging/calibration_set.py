"""The calibration set of a judge: answers that are known to be right or wrong.

Right: the gold answer and rule-based rewordings of it. Wrong: one set for each way in which judges err, such as vague
answers, hedges and near misses, all made by rule from the gold answer, and specific wrong answers from a file. All
questions come from the training and validation conversations, so a judge is never calibrated on questions that it
grades in a test.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from memometer.benchmarks.metrics import ABSTENTION, token_f1
from memometer.benchmarks.protocol import Conversation, Dataset, Question
from memometer.benchmarks.sampling import sample
from memometer.judging import evasive_answers
from memometer.judging.near_misses import moved_dates, near_misses
from memometer.judging.right_answers import OPINION, long_answer, rewordings

RIGHT = ("gold", "paraphrase")
WRONG = (
    "vague", "echo", "hedge", "refusal", "refusal_with_content", "injection", "empty_talk", "other_speaker",
    "adjacent_date", "near_miss", "specific_wrong",
)  # fmt: skip

WITH_LONG_ANSWERS = ("other_speaker", "adjacent_date")
"""Sets in which every second answer is part of a long sentence, because words around a wrong date can hide it."""

SEED = 0
"""Fixed, so that nobody can redraw the set until a judge passes."""

SOURCES = ("calibration_set", "evasive_answers", "near_misses", "right_answers", "word_kinds", "answer_rules")
"""The modules of this folder that determine the calibration set and the verdicts by rule."""


@dataclass(frozen=True, slots=True)
class CalibrationAnswer:
    """An answer of known correctness: the set (a name in RIGHT or WRONG) and the rule (`kind`) that made it."""

    set: str
    kind: str
    question: Question
    answer: str

    @property
    def label(self) -> Literal["correct", "wrong"]:
        """The label that a perfect judge gives."""
        return "correct" if self.set in RIGHT else "wrong"


def calibration_conversations(data: Dataset) -> tuple[Conversation, ...]:
    """Return the training and validation conversations; all conversations of sample or synthetic data."""
    if data.kind:
        return data.conversations
    return (*data.part("train"), *data.part("validation"))


def draw(
    data: Dataset, per_set: int, *, wrong_answers: Mapping[str, str] | None = None
) -> dict[str, list[CalibrationAnswer]]:
    """Draw the calibration set, the same in every process.

    Args:
        data: The data.
        per_set: Maximum number of answers per set.
        wrong_answers: Question id -> wrong answer; without it there is no set `specific_wrong`.

    Returns:
        Name of the set -> its answers.
    """
    conversations = calibration_conversations(data)
    questions = [q for c in conversations for q in c.questions if q.gold is not None]
    return {
        name: _balanced(name, [(q, made) for q in questions if (made := make(q))], per_set)
        for name, make in makers(conversations, questions, wrong_answers).items()
    }


def makers(
    conversations: Sequence[Conversation], questions: Sequence[Question], wrong_answers: Mapping[str, str] | None = None
) -> dict[str, Callable[[Question], Mapping[str, str]]]:
    """Return the rule of each set: a function from a question to its answers by kind.

    Args:
        conversations: The conversations of the questions.
        questions: Questions with gold answers, from which other candidates are drawn.
        wrong_answers: Question id -> specific wrong answer; without it there is no set `specific_wrong`.
    """
    others = evasive_answers.candidates(questions)
    found: dict[str, Callable[[Question], Mapping[str, str]]] = {
        "gold": lambda q: {"gold": q.gold or ""},
        "paraphrase": rewordings,
        "vague": evasive_answers.vague_answers,
        "echo": evasive_answers.echoes,
        "hedge": lambda q: evasive_answers.hedges(q, others(q)),
        "refusal": lambda _: {"refusal": ABSTENTION},
        "refusal_with_content": lambda q: evasive_answers.refusals_with_content(q, others(q)),
        "injection": lambda q: evasive_answers.injections(others(q)),
        "empty_talk": evasive_answers.empty_talk,
        "other_speaker": _answers_for_other_speaker(conversations),
        "adjacent_date": moved_dates,
        "near_miss": near_misses,
    }
    if wrong_answers is not None:
        found["specific_wrong"] = lambda q: {"specific": wrong_answers[q.id]} if q.id in wrong_answers else {}
    return found


def _balanced(name: str, made: Sequence[tuple[Question, Mapping[str, str]]], n: int) -> list[CalibrationAnswer]:
    """Draw n answers, balanced over kinds and stratified by category within a kind.

    There is one answer per question. Only if there are fewer questions than n, further kinds of the same questions
    follow.
    """
    generator = random.Random(f"{SEED}/{name}")
    answers = {q.id: answers for q, answers in made}
    kinds: dict[str, list[Question]] = defaultdict(list)
    for question, options in made:
        for kind in options:
            kinds[kind].append(question)
    chosen: dict[str, CalibrationAnswer] = {}
    # The rarest kind first, because the other kinds have enough questions left.
    rarest_first = sorted(kinds.items(), key=lambda item: len(item[1]))
    for i, (kind, questions) in enumerate(rarest_first):
        free = [question for question in questions if question.id not in chosen]
        share = -(-(n - len(chosen)) // (len(kinds) - i))
        for question in sample(free, share, seed=generator.randrange(1 << 30)):
            chosen[question.id] = CalibrationAnswer(name, kind, question, answers[question.id][kind])
    drawn = [chosen[question.id] for question, _ in made if question.id in chosen]
    further = [
        CalibrationAnswer(name, kind, question, text)
        for question, options in made
        for kind, text in options.items()
        if question.id not in chosen or kind != chosen[question.id].kind
    ]
    drawn += generator.sample(further, min(len(further), max(0, n - len(drawn))))
    if name not in WITH_LONG_ANSWERS:
        return drawn
    # Alternate within each kind, so that every kind occurs both ways.
    count: dict[str, int] = defaultdict(int)
    for i, answer in enumerate(drawn):
        count[answer.kind] += 1
        if count[answer.kind] % 2 == 0:
            long = long_answer(answer.question, answer.answer)
            drawn[i] = replace(answer, kind=f"{answer.kind} at length", answer=long)
    return drawn


# ---------------------------------------------------------------- the other speaker


def _answers_for_other_speaker(conversations: Iterable[Conversation]) -> Callable[[Question], Mapping[str, str]]:
    """Return a function that finds the answer for the other speaker.

    It is the gold answer of the most similar question about the other speaker, of the same conversation and category,
    preferably with the same first word. Golds that share a third of their words are left out, and so are opinions.
    """
    about: dict[tuple[str, str, str], list[Question]] = defaultdict(list)
    named: dict[str, tuple[str, str]] = {}
    for conversation in conversations:
        for question in conversation.questions:
            names = [name for name in conversation.speakers if re.search(rf"\b{re.escape(name)}\b", question.text)]
            if question.gold is None or len(names) != 1 or OPINION.match(question.gold):
                continue
            other = next(name for name in conversation.speakers if name != names[0])
            named[question.id] = names[0], other
            about[conversation.id, question.category, names[0]].append(question)

    def swapped(question: Question) -> dict[str, str]:
        if question.id not in named:
            return {}
        name, other = named[question.id]
        text, gold = question.text.replace(name, other), question.gold or ""
        similar = about[question.conversation, question.category, other]
        alike = {
            q.gold: (q.text.split()[0] == text.split()[0], token_f1(q.text, text))
            for q in similar
            if q.gold and token_f1(q.gold, gold) < 1 / 3
        }
        return {"other speaker": max(alike, key=lambda gold: alike[gold])} if alike else {}

    return swapped
