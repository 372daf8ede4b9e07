"""Count the dates among LOCOMO's answers that the date rule derives from the evidence, without a model.

    python benchmarks/date_coverage.py [--data FILE]

The script counts the answers of category 2 that are a date, by the result of the rule on the evidence turns:

    day, month, year  the rule derives the date, to this precision
    within            the rule derives a period that contains the date
    anchored          the answer is relative to a day (`the week before 9 June 2023`), and a turn of that day has a
                      relative expression
    session day       the date is the day of an evidence turn
    missed            the rule does not derive the date
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from locomo.dataset import Question, load
from memometer.benchmarks.protocol import Conversation, DataError
from memometer.memory import Turn
from memometer.retrieval import dates

RELATIVE = re.compile(r"\b(?:before|after|week|weekend|early|late|end|beginning|around|few)\b", re.IGNORECASE)
ANY_DAY = date(2023, 6, 1)


def derivation(question: Question, evidence: Iterable[Turn]) -> str | None:
    """Return the result of the rule, one of the words above; None if the answer is not a date."""
    gold = question.gold or ""
    absolute = [when for when in dates.find(gold, ANY_DAY) if not when.relative]
    years = set(re.findall(r"\b(?:19|20)\d\d\b", gold))
    if not years:
        return None
    days = [when.start for when in absolute if when.precision == "day"]
    months = {(when.start.year, when.start.month) for when in absolute if when.precision == "month"}
    ways = set()
    for turn in evidence:
        said = turn.said_at.date()
        found = dates.find(turn.text, said)
        for day in days:
            if RELATIVE.search(gold):
                ways |= {"anchored"} if day == said and found else set()
                continue
            ways |= {"day" for when in found if when.precision == "day" and when.start == day}
            ways |= {"within" for when in found if when.precision != "day" and when.start <= day <= when.end}
            ways |= {"session day"} if day == said else set()
        if not days:
            starts = {(when.start.year, when.start.month) for when in found if when.precision != "year"}
            ways |= {"month"} if months & starts else set()
            if not months:
                ways |= {"year" for when in found if str(when.start.year) in years}
    order = ("day", "month", "year", "within", "anchored", "session day")
    return next((way for way in order if way in ways), "missed")


def counted(conversations: Iterable[Conversation]) -> Counter[str]:
    """Return the number of dates among the gold answers of category 2, by result of the rule."""
    ways: Counter[str] = Counter()
    for conversation in conversations:
        turns = {turn.id: turn for turn in conversation.turns}
        for question in conversation.questions:
            if question.category == "2" and (way := derivation(question, [turns[id] for id in question.evidence])):
                ways[way] += 1
    return ways


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", metavar="FILE")
    try:
        data = load(p.parse_args(argv).data)
    except DataError as error:
        print(f"date_coverage: {error}", file=sys.stderr)
        return 2
    ways = counted(data.conversations)
    total = ways.total()
    for way, n in ways.most_common():
        print(f"{data.prefix}{n:4d}  {way}")
    if total:
        print(f"{data.prefix}{total - ways['missed']} of {total} dates derived, {1 - ways['missed'] / total:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
