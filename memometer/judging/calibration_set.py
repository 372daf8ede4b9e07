"""What a judge is shown to measure it: answers of which it is known whether they are right.

Right: the gold itself, and rewordings of it by rule. Wrong: a refusal, what the other speaker would answer, the date
moved a little, and, where the file is at hand, deliberately wrong but specific answers. Everything is drawn from
conversations that are given; a judge is never measured on those that it will grade.
"""

from __future__ import annotations

import random
import re
from calendar import monthrange
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta

from memometer.benchmarks.metrics import ABSTENTION, token_f1
from memometer.benchmarks.protocol import Conversation, Dataset, Question
from memometer.benchmarks.sampling import sample
from memometer.retrieval.dates import MONTHS, WEEKDAYS, DateRange, find

RIGHT = ("gold", "paraphrase")
WRONG = ("refusal", "other_speaker", "adjacent_date", "specific_wrong")

AT_LENGTH = ("other_speaker", "adjacent_date")
"""Sets whose answers stand in a long sentence half of the time: words around a wrong date hide it from a judge."""

SEED = 0
"""Fixed: a certificate that could be drawn again until it pleases would be worth nothing."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One answer to grade. `set` is a name in RIGHT or WRONG, `kind` the rule that made it."""

    set: str
    kind: str
    question: Question
    answer: str

    @property
    def right(self) -> bool:
        return self.set in RIGHT

    @property
    def key(self) -> str:
        """The question's id; a set asks each question once."""
        return self.question.id


def calibration(data: Dataset) -> tuple[Conversation, ...]:
    """The conversations a judge may be measured on: training and validation, never test. A stand-in's are all."""
    if data.kind:
        return data.conversations
    return (*data.part("train"), *data.part("validation"))


def draw(data: Dataset, per_set: int, *, wrong: Mapping[str, str] | None = None) -> dict[str, list[Probe]]:
    """Set name -> at most `per_set` probes (of golds twice as many), the same in every process.

    Args:
        wrong: question id -> a wrong answer; without it there is no set `specific_wrong`.
    """
    asked = [q for c in calibration(data) for q in c.questions if q.gold is not None]
    makers: dict[str, Callable[[Question], Mapping[str, str]]] = {
        "gold": lambda q: {"gold": q.gold or ""},
        "paraphrase": rewordings,
        "refusal": lambda _: {"refusal": ABSTENTION},
        "other_speaker": _swaps(calibration(data)),
        "adjacent_date": moved_dates,
    }
    if wrong is not None:
        makers["specific_wrong"] = lambda q: {"specific": wrong[q.id]} if q.id in wrong else {}
    return {
        name: _balanced(name, [(q, made) for q in asked if (made := make(q))], per_set * (2 if name == "gold" else 1))
        for name, make in makers.items()
    }


def _balanced(name: str, made: Sequence[tuple[Question, Mapping[str, str]]], n: int) -> list[Probe]:
    """`n` of them, a question at most once, every kind as often as it can be; within a kind stratified by category."""
    generator = random.Random(f"{SEED}/{name}")
    answers = {q.id: answers for q, answers in made}
    kinds: dict[str, list[Question]] = defaultdict(list)
    for question, options in made:
        for kind in options:
            kinds[kind].append(question)
    chosen: dict[str, Probe] = {}
    # The rarest kind first: the others can do without the questions that it takes.
    rarest_first = sorted(kinds.items(), key=lambda item: len(item[1]))
    for i, (kind, questions) in enumerate(rarest_first):
        free = [question for question in questions if question.id not in chosen]
        share = -(-(n - len(chosen)) // (len(kinds) - i))
        for question in sample(free, share, seed=generator.randrange(1 << 30)):
            chosen[question.id] = Probe(name, kind, question, answers[question.id][kind])
    drawn = [chosen[question.id] for question, _ in made if question.id in chosen]
    if name not in AT_LENGTH:
        return drawn
    # In turns within each kind, so that every kind is shown both ways.
    turn: dict[str, int] = defaultdict(int)
    for i, probe in enumerate(drawn):
        turn[probe.kind] += 1
        if turn[probe.kind] % 2 == 0:
            long = _at_length(probe.question, probe.answer)
            drawn[i] = replace(probe, kind=f"{probe.kind} at length", answer=long)
    return drawn


# ---------------------------------------------------------------- the same in other words

_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_LEADING_NUMBER = re.compile(
    r"(?:(?:nearly|about|around|approximately)\s+)?(?P<number>\d+|" + "|".join(_NUMBERS) + r")(?![-\w])", re.IGNORECASE
)
_OPINION = re.compile(r"(?:yes|no|likely|unlikely|presumably|possibly|maybe|most)\b", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[;:.!?]|\b(?:because|since|but|though|so|who|which|that|while|as|or|where|when|with|by)\b", re.IGNORECASE
)


def rewordings(question: Question) -> dict[str, str]:
    """Kind -> the gold in other words that mean the same, by rules that a reader of the gold can check."""
    gold = (question.gold or "").strip()
    pick = random.Random(f"{SEED}/{question.id}").choice
    bare = gold.rstrip(".")
    forms = [f"The answer is: {gold}", f"According to the conversation: {gold}"]
    found = {
        "sentence": pick(forms if _OPINION.match(gold) else [*forms, f"It was {bare}."]),
        "long": _at_length(question, gold),
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


def _at_length(question: Question, answer: str) -> str:
    return (
        f"The question was: {question.text} Going by what the two of them said to each other, the answer to that is "
        f"the following: {answer}"
    )


def _weekday_before(gold: str) -> date | None:
    """The day that `the Friday before 15 July 2023` means."""
    match = re.fullmatch(rf"(?:on )?(?:the )?({'|'.join(WEEKDAYS)}) before (.+)", gold, re.IGNORECASE)
    when = _bare_date(match[2]) if match else None
    if match is None or when is None or when.precision != "day":
        return None
    return when.start - timedelta(days=(when.start.weekday() - WEEKDAYS.index(match[1].lower()) - 1) % 7 + 1)


def _list_of(question: Question, gold: str) -> list[str]:
    """The members of a list in any order; empty for what only looks like one (a place in a country, a reason)."""
    if not question.gold_is_list or _CLAUSE.search(gold) or re.search(r"\d|\(|\"|&", gold):
        return []
    if re.match(r"(?:when|how|where|why|in which)\b", question.text, re.IGNORECASE):
        return []
    parts = [part.strip() for part in re.split(r",\s*(?:and\s+)?|\s+and\s+", gold)]
    return parts if len(parts) > 1 and all(part and len(part.split()) <= 4 for part in parts) else []


def _forms(when: DateRange) -> list[str]:
    """Other ways to write a date. None that is read differently in two countries."""
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
    """The absolute dates with a year in a gold answer."""
    found = [when for when in find(gold, _ANY_DAY) if not when.relative]
    return [when for when in found if _YEAR.search(gold[slice(*when.span)]) and when.precision in ("day", "month")]


def _bare_date(gold: str) -> DateRange | None:
    """The date that the gold is, where it is a date and nothing else."""
    dates = _dates(gold)
    if len(dates) != 1:
        return None
    beside = re.sub(rf"\b(?:in|on|{_MONTH}|\d+(?:st|nd|rd|th)?)\b", "", gold, flags=re.IGNORECASE)
    return None if re.search(r"\w", beside) else dates[0]


def moved_dates(question: Question) -> dict[str, str]:
    """Step (day, week, month, year) -> the gold with its date moved by one of it, so that it means another time.

    Empty without a date, or with several. `The Friday before 15 July` is the same Friday a day later, so that only
    what is a bare day moves by a day.
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
    """The date in the form in which another one is written."""
    written = _YEAR.sub(str(day.year), written)
    written = re.sub(rf"\b(?:{_MONTH})\b", f"{day:%B}", written, flags=re.IGNORECASE)
    return re.sub(r"\b\d{1,2}(?:st|nd|rd|th)?\b", str(day.day), written)


# ---------------------------------------------------------------- the other speaker


def _swaps(conversations: Iterable[Conversation]) -> Callable[[Question], Mapping[str, str]]:
    """What the other speaker would answer: the gold of the question about the other one that is put most alike (with
    the same first word, if any is), of the same conversation and category. Not where the golds share a third of their
    words, or say yes or no."""
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
        mine, other = named[question.id]
        text, gold = question.text.replace(mine, other), question.gold or ""
        theirs = about[question.conversation, question.category, other]
        alike = {
            q.gold: (q.text.split()[0] == text.split()[0], token_f1(q.text, text))
            for q in theirs
            if q.gold and token_f1(q.gold, gold) < 1 / 3
        }
        return {"other speaker": max(alike, key=lambda gold: alike[gold])} if alike else {}

    return swapped
