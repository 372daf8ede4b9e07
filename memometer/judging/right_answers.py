"""Right answers for the calibration of a judge: rewordings of a gold answer, and the dates and lists in it."""

from __future__ import annotations

import random
import re
from datetime import date, timedelta

from memometer.benchmarks.protocol import Question
from memometer.retrieval.date_ranges import MONTHS, WEEKDAYS, DateRange
from memometer.retrieval.dates import find

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
LEADING_NUMBER = re.compile(
    r"(?:(?:nearly|about|around|approximately)\s+)?(?P<number>\d+|" + "|".join(NUMBERS) + r")(?![-\w])", re.IGNORECASE
)
OPINION = re.compile(r"(?:yes|no|likely|unlikely|presumably|possibly|maybe|most)\b", re.IGNORECASE)
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
    pick = random.Random(f"0/{question.id}").choice
    bare = gold.rstrip(".")
    forms = [f"The answer is: {gold}", f"According to the conversation: {gold}"]
    found = {
        "sentence": pick(forms if OPINION.match(gold) else [*forms, f"It was {bare}."]),
        "long": long_answer(question, gold),
    }
    if day := _weekday_before(gold):
        found["resolved date"] = f"{day.day} {day:%B %Y}"
    elif (when := bare_date(gold)) and (forms := [form for form in _forms(when) if form.lower() != gold.lower()]):
        found["date format"] = pick(forms)
    elif number := LEADING_NUMBER.match(gold):
        word = number["number"].lower()
        other = str(NUMBERS.index(word)) if word in NUMBERS else NUMBERS[int(word)] if int(word) <= 12 else ""
        if other:
            found["number"] = gold[: number.start("number")] + other + gold[number.end("number") :]
    elif parts := list_items(question, bare):
        *most, last = parts[::-1]
        found["list order"] = f"{', '.join(most)} and {last}"
    return found


def long_answer(question: Question, answer: str) -> str:
    return (
        f"The question was: {question.text} Going by what the two of them said to each other, the answer to that is "
        f"the following: {answer}"
    )


def _weekday_before(gold: str) -> date | None:
    """Resolve a date such as `the Friday before 15 July 2023`."""
    match = re.fullmatch(rf"(?:on )?(?:the )?({'|'.join(WEEKDAYS)}) before (.+)", gold, re.IGNORECASE)
    when = bare_date(match[2]) if match else None
    if match is None or when is None or when.precision != "day":
        return None
    return when.start - timedelta(days=(when.start.weekday() - WEEKDAYS.index(match[1].lower()) - 1) % 7 + 1)


def list_items(question: Question, gold: str) -> list[str]:
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


_ANY_DAY = date(2000, 1, 1)
YEAR = re.compile(r"\b(?:19|20)\d\d\b")
MONTH = "|".join(f"{name}|{name[:3]}" for name in MONTHS)


def dates_in(gold: str) -> list[DateRange]:
    """Find the absolute dates with a year in a gold answer."""
    found = [when for when in find(gold, _ANY_DAY) if not when.relative]
    return [when for when in found if YEAR.search(gold[slice(*when.span)]) and when.precision in ("day", "month")]


def bare_date(gold: str) -> DateRange | None:
    """Return the date of a gold answer that is a date and nothing else."""
    dates = dates_in(gold)
    if len(dates) != 1:
        return None
    rest = re.sub(rf"\b(?:in|on|{MONTH}|\d+(?:st|nd|rd|th)?)\b", "", gold, flags=re.IGNORECASE)
    return None if re.search(r"\w", rest) else dates[0]
