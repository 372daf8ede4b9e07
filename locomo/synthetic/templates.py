"""Words for synthetic conversations: sentence templates, invented names, relative dates.

The words were written for this project and are in simulation.toml and simulation-talk.toml.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from memometer.memory import format_date
from memometer.synthetic.draw import Draw

Slots = Mapping[str, str | Sequence[str]]
"""Blank -> text, or a sequence of texts from which one is drawn at each use."""

IMPLIED = {"some": {"kind"}, "venue": {"spot"}}
CONCENTRATION, DISCOUNT = 12.0, 0.6
"""Parameters of the distribution of names; the number of different names grows as n ** DISCOUNT."""


class Names:
    """Invents names with a Pitman-Yor distribution, as in real text: a few are common, and most are rare.

    Args:
        draw: The random choices.
        kind: The kind of name: place, person or title.
        taken: Names to avoid.
    """

    def __init__(self, draw: Draw, kind: str, taken: Collection[str] = ()) -> None:
        self.draw = draw
        self.starts, self.ends = vocabulary()["names"][f"{kind}_start"], vocabulary()["names"][f"{kind}_end"]
        self.joint = " " if kind == "title" else ""
        self.known = set(taken)
        self.drawn: list[str] = []

    def __call__(self) -> str:
        fresh = (CONCENTRATION + DISCOUNT * len(self.known)) / (CONCENTRATION + len(self.drawn))
        name = self._invent() if self.draw.chance(fresh) else self.draw.pick(self.drawn)
        self.drawn.append(name)
        return name

    def _invent(self) -> str:
        name = self.draw.pick(self.starts)
        while True:  # an existing name gets another syllable
            name += self.joint + self.draw.pick(self.ends)
            if name not in self.known:
                self.known.add(name)
                return name


@cache
def vocabulary() -> dict[str, Any]:
    """Read both word files as one dictionary. Texts of one line become lists of words, others lists of sentences."""
    tables: dict[str, Any] = {}
    for name in ("simulation.toml", "simulation-talk.toml"):
        tables |= tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))

    def split(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {key: split(inner, key) for key, inner in value.items()}
        if key in ("some", "name", "gold"):
            return value
        return value.strip().split("\n") if "\n" in value else [word.strip() for word in value.split(",")]

    return {key: split(value, key) for key, value in tables.items()}


@cache
def blanks(sentence: str) -> frozenset[str]:
    """Return the names of the blanks in a sentence."""
    return frozenset(re.findall(r"\{(\w+)\}", sentence))


def said_by(line: str) -> frozenset[str]:
    """Return the slots that a line states: its blanks and the slots that they imply."""
    named = blanks(line)
    return named.union(*(IMPLIED.get(blank, ()) for blank in named))


def fill(draw: Draw, sentence: str, slots: Slots) -> str:
    """Fill the {slots} of a sentence, replace each <word> by a synonym, and correct articles and capitals."""
    synonyms = vocabulary()["synonyms"]

    def choose(match: re.Match[str]) -> str:
        options = slots[match[1]] if match[1] else synonyms[match[2]]
        return options if isinstance(options, str) else draw.pick(options)

    while "{" in sentence or "<" in sentence:  # the text in a blank may have blanks too
        sentence = re.sub(r"\{(\w+)\}|<(\w+)>", choose, sentence)
    sentence = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", sentence)
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), sentence)


NUMBERS = ("two", "three", "four", "five", "six")


def relative_date(draw: Draw, said_at: datetime) -> tuple[str, str]:
    """Draw a relative date.

    Args:
        draw: The random choices.
        said_at: The time at which it is said.

    Returns:
        The expression and its date, such as ("last week", "the week before 8 May 2023"). The date is as exact as the
        expression.
    """
    n = draw.between(0, len(NUMBERS) - 1)
    kind = draw.pick(("day", "day", "now", "ago", "weekday", "weekday", "week", "weekend", "weeks", "month", "year"))
    today = format_date(said_at)
    if kind == "day":
        return draw.pick(("yesterday", "last night")), format_date(said_at - timedelta(days=1))
    if kind == "now":
        return draw.pick(("today", "this morning")), today
    if kind == "ago":
        return f"{NUMBERS[n]} days ago", format_date(said_at - timedelta(days=n + 2))
    if kind == "weekday":
        name = f"{said_at - timedelta(days=draw.between(1, 6)):%A}"
        return f"last {name}", f"the {name} before {today}"
    if kind in ("week", "weekend"):
        return f"last {kind}", f"the {kind} before {today}"
    if kind == "weeks":
        return f"{NUMBERS[n]} weeks ago", f"{NUMBERS[n]} weeks before {today}"
    if kind == "month":
        return "last month", f"{said_at.replace(day=1) - timedelta(days=1):%B %Y}"
    return (f"{NUMBERS[n]} years ago", f"{said_at.year - n - 2}") if n else ("last year", f"{said_at.year - 1}")
