"""Wrong answers that are close to the gold answer: another date or number, another thing of the same kind."""

from __future__ import annotations

import random
import re
from calendar import monthrange
from datetime import date, timedelta

from memometer.benchmarks.protocol import Question
from memometer.judging.right_answers import (
    LEADING_NUMBER,
    MONTH,
    NUMBERS,
    OPINION,
    YEAR,
    bare_date,
    dates_in,
    list_items,
)
from memometer.judging.word_kinds import KINDS, first_known


def moved_dates(question: Question) -> dict[str, str]:
    """Move the date of a gold answer by one step, so that it means another time.

    Only a bare date moves by a day, because `the Friday before 15 July` may be the same Friday one day later.

    Args:
        question: A question with a gold answer.

    Returns:
        Step (day, week, month, year) -> text; empty without a date or with several.
    """
    gold = question.gold or ""
    pick = random.Random(f"0/{question.id}/date").choice
    dates, years = dates_in(gold), list(YEAR.finditer(gold))
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
        steps += ["week", "day"] if bare_date(gold) else ["week"]
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
    written = YEAR.sub(str(day.year), written)
    written = re.sub(rf"\b(?:{MONTH})\b", f"{day:%B}", written, flags=re.IGNORECASE)
    return re.sub(r"\b\d{1,2}(?:st|nd|rd|th)?\b", str(day.day), written)


_OPPOSITES = {"yes": "no", "no": "yes", "likely": "unlikely", "unlikely": "likely"}
_UNIT = re.compile(r"\b(minute|hour|day|week|month|year|decade)(s?)\b", re.IGNORECASE)
_UNITS = ("minute", "hour", "day", "week", "month", "year", "decade")


def near_misses(question: Question) -> dict[str, str]:
    """Change a gold answer in one place, so that it states another fact.

    Args:
        question: A question with a gold answer.

    Returns:
        Kind of the change (number, unit, same kind, one item, opposite) -> text; empty if no rule applies.
    """
    gold = (question.gold or "").strip()
    generator = random.Random(f"0/{question.id}/near")
    found: dict[str, str] = {}
    if not dates_in(gold) and (number := LEADING_NUMBER.match(gold)):
        found["number"] = _with_number(gold, number, generator)
        if unit := _UNIT.search(gold):
            other = _UNITS[(_UNITS.index(unit[1].lower()) + 1) % len(_UNITS)]
            found["unit"] = f"{gold[: unit.start()]}{other}{unit[2]}{gold[unit.end() :]}"
    if known := first_known(gold):
        match, kind = known
        used = f"{gold} {question.text}".lower()
        others = [word for word in KINDS[kind] if word.lower() not in used]
        word = generator.choice(others)
        found["same kind"] = gold[: match.start()] + word + gold[match.end() :]
        parts = list_items(question, gold.rstrip("."))
        if parts and "same kind" in found:
            found["one item"] = ", ".join([*parts[:-1], word]) if match.start() > 0 else ", ".join([word, *parts[1:]])
    if (opinion := OPINION.match(gold)) and (opposite := _OPPOSITES.get(opinion[0].lower())):
        found["opposite"] = opposite.capitalize()
    return {kind: text for kind, text in found.items() if text.casefold() != gold.casefold()}


def _with_number(gold: str, number: re.Match[str], generator: random.Random) -> str:
    """Replace the number by one that is one or two larger or smaller, in the same notation."""
    word = number["number"].lower()
    value = NUMBERS.index(word) if word in NUMBERS else int(word)
    moved = max(1, value + generator.choice([-2, -1, 1, 2]))
    moved = moved if moved != value else value + 1
    text = NUMBERS[moved] if word in NUMBERS and moved < len(NUMBERS) else str(moved)
    return gold[: number.start("number")] + text + gold[number.end("number") :]
