"""The calibration set of a judge: answers that are known to be right or wrong.

Right: the gold answer and rule-based rewordings of it. Wrong: a refusal, the answer for the other speaker, a date moved
by one step, and deliberately wrong but specific answers from a file. All questions come from the training and
validation conversations, so a judge is never calibrated on questions that it grades in a test.
"""

from __future__ import annotations

import random
import re
from calendar import monthrange
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Literal

from memometer.benchmarks.metrics import ABSTENTION, token_f1
from memometer.benchmarks.protocol import Conversation, Dataset, Question
from memometer.benchmarks.sampling import sample
from memometer.retrieval.date_ranges import MONTHS, WEEKDAYS, DateRange
from memometer.retrieval.dates import find

RIGHT = ("gold", "paraphrase")
WRONG = ("refusal", "other_speaker", "adjacent_date", "specific_wrong")

WITH_LONG_ANSWERS = ("other_speaker", "adjacent_date")
"""Sets in which every second answer is part of a long sentence, because words around a wrong date can hide it."""

SEED = 0
"""Fixed, so that nobody can redraw the set until a judge passes."""


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
        per_set: Maximum number of answers per set; twice as many gold answers.
        wrong_answers: Question id -> wrong answer; without it there is no set `specific_wrong`.

    Returns:
        Name of the set -> its answers.
    """
    questions = [q for c in calibration_conversations(data) for q in c.questions if q.gold is not None]
    makers: dict[str, Callable[[Question], Mapping[str, str]]] = {
        "gold": lambda q: {"gold": q.gold or ""},
        "paraphrase": rewordings,
        "refusal": lambda _: {"refusal": ABSTENTION},
        "other_speaker": _answers_for_other_speaker(calibration_conversations(data)),
        "adjacent_date": moved_dates,
    }
    if wrong_answers is not None:
        makers["specific_wrong"] = lambda q: {"specific": wrong_answers[q.id]} if q.id in wrong_answers else {}
    return {
        name: _balanced(
            name, [(q, made) for q in questions if (made := make(q))], per_set * (2 if name == "gold" else 1)
        )
        for name, make in makers.items()
    }


def _balanced(name: str, made: Sequence[tuple[Question, Mapping[str, str]]], n: int) -> list[CalibrationAnswer]:
    """Draw n answers, at most one per question, balanced over kinds and stratified by category within a kind."""
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
    if name not in WITH_LONG_ANSWERS:
        return drawn
    # Alternate within each kind, so that every kind occurs both ways.
    count: dict[str, int] = defaultdict(int)
    for i, answer in enumerate(drawn):
        count[answer.kind] += 1
        if count[answer.kind] % 2 == 0:
            long = _long_answer(answer.question, answer.answer)
            drawn[i] = replace(answer, kind=f"{answer.kind} at length", answer=long)
    return drawn


# ---------------------------------------------------------------- rewordings

_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_LEADING_NUMBER = re.compile(
    r"(?:(?:nearly|about|around|approximately)\s+)?(?P<number>\d+|" + "|".join(_NUMBERS) + r")(?![-\w])", re.IGNORECASE
)
_OPINION = re.compile(r"(?:yes|no|likely|unlikely|presumably|possibly|maybe|most)\b", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[;:.!?]|\b(?:because|since|but|though|so|who|which|that|while|as|or|where|when|with|by)\b", re.IGNORECASE
)


def rewordings(question: Question) -> dict[str, str]:
    """Reword the gold answer of a question without changing its meaning.

    Args:
        question: A question with a gold answer.

    Returns:
        Kind of the rewording -> text.
    """
    gold = (question.gold or "").strip()
    pick = random.Random(f"{SEED}/{question.id}").choice
    bare = gold.rstrip(".")
    forms = [f"The answer is: {gold}", f"According to the conversation: {gold}"]
    found = {
        "sentence": pick(forms if _OPINION.match(gold) else [*forms, f"It was {bare}."]),
        "long": _long_answer(question, gold),
    }
    if day := _weekday_before(gold):
        found["resolved date"] = f"{day.day} {day:%B %Y}"
    elif (when := _bare_date(gold)) and (forms := [form for form in _forms(when) if form.lower() != gold.lower()]):
        found["date format"] = pick(forms)
    elif number := _LEADING_NUMBER.match(gold):
        word = number["number"].lower()
        other = str(_NUMBERS.index(word)) if word in _NUMBERS else _NUMBERS[int(word)] if int(word) <= 12 else ""
        if other:
            found["number"] = gold[: number.start("number")] + other + gold[number.end("number") :]
    elif parts := _list_of(question, bare):
        *most, last = parts[::-1]
        found["list order"] = f"{', '.join(most)} and {last}"
    return found


def _long_answer(question: Question, answer: str) -> str:
    return (
        f"The question was: {question.text} Going by what the two of them said to each other, the answer to that is "
        f"the following: {answer}"
    )


def _weekday_before(gold: str) -> date | None:
    """Resolve a date such as `the Friday before 15 July 2023`."""
    match = re.fullmatch(rf"(?:on )?(?:the )?({'|'.join(WEEKDAYS)}) before (.+)", gold, re.IGNORECASE)
    when = _bare_date(match[2]) if match else None
    if match is None or when is None or when.precision != "day":
        return None
    return when.start - timedelta(days=(when.start.weekday() - WEEKDAYS.index(match[1].lower()) - 1) % 7 + 1)


def _list_of(question: Question, gold: str) -> list[str]:
    """Split a gold answer that is an unordered list; empty for other text with commas, such as a place or a reason."""
    if not question.gold_is_list or _CLAUSE.search(gold) or re.search(r"\d|\(|\"|&", gold):
        return []
    if re.match(r"(?:when|how|where|why|in which)\b", question.text, re.IGNORECASE):
        return []
    parts = [part.strip() for part in re.split(r",\s*(?:and\s+)?|\s+and\s+", gold)]
    return parts if len(parts) > 1 and all(part and len(part.split()) <= 4 for part in parts) else []


def _forms(when: DateRange) -> list[str]:
    """Write a date in other formats, none of which is ambiguous between countries."""
    day, month, year = when.start.day, f"{when.start:%B}", when.start.year
    if when.precision == "month":
        return [f"{month} of {year}", f"in {month}, {year}", f"{when.start:%Y-%m}"]
    ordinal = f"{day}{'th' if 11 <= day <= 13 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"
    return [
        f"{month} {day}, {year}",
        f"{day} {month} {year}",
        f"on the {ordinal} of {month}, {year}",
        f"{when.start:%A}, {month} {day}, {year}",
        when.start.isoformat(),
    ]


# ---------------------------------------------------------------- dates

_ANY_DAY = date(2000, 1, 1)
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
_MONTH = "|".join(f"{name}|{name[:3]}" for name in MONTHS)


def _dates(gold: str) -> list[DateRange]:
    """Find the absolute dates with a year in a gold answer."""
    found = [when for when in find(gold, _ANY_DAY) if not when.relative]
    return [when for when in found if _YEAR.search(gold[slice(*when.span)]) and when.precision in ("day", "month")]


def _bare_date(gold: str) -> DateRange | None:
    """Return the date of a gold answer that is a date and nothing else."""
    dates = _dates(gold)
    if len(dates) != 1:
        return None
    rest = re.sub(rf"\b(?:in|on|{_MONTH}|\d+(?:st|nd|rd|th)?)\b", "", gold, flags=re.IGNORECASE)
    return None if re.search(r"\w", rest) else dates[0]


def moved_dates(question: Question) -> dict[str, str]:
    """Move the date of a gold answer by one step, so that it means another time.

    Only a bare date moves by a day, because `the Friday before 15 July` may be the same Friday one day later.

    Args:
        question: A question with a gold answer.

    Returns:
        Step (day, week, month, year) -> text; empty without a date or with several.
    """
    gold = question.gold or ""
    pick = random.Random(f"{SEED}/{question.id}/date").choice
    dates, years = _dates(gold), list(_YEAR.finditer(gold))
    if not dates and len(years) == 1 and not re.search(r"\d", gold.replace(years[0][0], "")):
        start, end = years[0].span()
        return {"year": f"{gold[:start]}{int(years[0][0]) + pick([-1, 1])}{gold[end:]}"}
    if len(dates) != 1:
        return {}
    start, end = dates[0].span
    if re.search(r"\d", gold[:start] + gold[end:]):
        return {}
    steps = ["month", "year"]
    if dates[0].precision == "day":
        steps += ["week", "day"] if _bare_date(gold) else ["week"]
    return {
        step: gold[:start] + _rewritten(gold[start:end], _moved(dates[0].start, step, pick([-1, 1]))) + gold[end:]
        for step in steps
    }


def _moved(day: date, step: str, sign: int) -> date:
    if step in ("day", "week"):
        return day + sign * timedelta(days=1 if step == "day" else 7)
    months = day.year * 12 + day.month - 1 + sign * (1 if step == "month" else 12)
    year, month = months // 12, months % 12 + 1
    return date(year, month, min(day.day, monthrange(year, month)[1]))


def _rewritten(written: str, day: date) -> str:
    """Write a date in the format of another date."""
    written = _YEAR.sub(str(day.year), written)
    written = re.sub(rf"\b(?:{_MONTH})\b", f"{day:%B}", written, flags=re.IGNORECASE)
    return re.sub(r"\b\d{1,2}(?:st|nd|rd|th)?\b", str(day.day), written)


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
            if question.gold is None or len(names) != 1 or _OPINION.match(question.gold):
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
