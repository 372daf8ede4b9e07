"""Find the dates in a text and resolve relative ones against the day on which it was spoken.

Supported: yesterday, today, tonight, tomorrow, last night, the other day; last, this or next with a weekday, week,
weekend, month, season, year or name of a month; a number of days, weeks, weekends, months or years ago or from now;
and absolute dates: 5 May 2023, 05.05.2023, 2023-05-05, May 2023, spring 2023, 2023, the 1990s, the first week of 2023.
"""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

from memometer.retrieval.date_ranges import DECADES, MONTHS, NUMBERS, SEASONS, WEEKDAYS, DateRange, resolve

_UNIT = r"(?P<unit>day|night|week|weekend|month|year)s?"
_COUNT = r"(?P<count>\d{1,2}|(?:a\s+)?(?:couple|few)(?:\s+of)?|several|some|an?|" + "|".join(
    word for word in NUMBERS if " " not in word and len(word) > 2
) + ")"  # fmt: skip
_MONTH = r"(?P<month>" + "|".join(f"{m}|{m[:3]}" for m in MONTHS) + r"|sept)\.?"
_DAY = r"(?P<day>[12]?\d|3[01]|0[1-9])(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>(?:19|20)\d\d)"
_NAMED = r"(?P<named>" + "|".join((*WEEKDAYS, *SEASONS, *MONTHS, "mon", "tues?", "wed", "thurs?", "fri", "sat", "sun",
                                   "week(?!end)", "weekend", "month", "year")) + r")"  # fmt: skip

_SEASON = r"(?P<season>" + "|".join(SEASONS) + ")"
_BARE_MONTHS = "|".join(m for m in MONTHS if m not in ("may", "march", "april", "june", "august"))
"""Names of months that are neither other words nor common first names."""

_PATTERNS: tuple[tuple[str, str], ...] = (
    ("iso", r"(?P<year>(?:19|20)\d\d)(?P<mark>[-/.])(?P<month>\d\d?)(?P=mark)(?P<day>\d\d?)"),
    ("dotted", r"(?P<day>\d\d?)\.\s?(?P<month>\d\d?)\.\s?(?P<year>(?:19|20)\d\d)"),
    ("slashed", r"(?P<first>\d\d?)/(?P<second>\d\d?)/(?P<year>(?:19|20)\d\d)"),
    ("year_month", r"(?P<year>(?:19|20)\d\d)-(?P<month>0[1-9]|1[0-2])(?!\d|-)"),
    (
        "week_of",
        rf"(?P<which>first|second|third|last)\s+week\s+of\s+"
        rf"(?:{_MONTH}(?:,?\s+{_YEAR})?|{_YEAR.replace('year', 'year2')})",
    ),
    ("season_year", rf"(?:the\s+)?{_SEASON}(?:\s+of)?,?\s+{_YEAR}(?:\s?[-/–]\s?(?:20)?\d\d)?"),
    ("decade", r"(?:the\s+|early\s+|late\s+|mid\s+)*(?P<year>(?:19|20)\d0)'?s"),
    ("decade", r"(?:the\s+)(?:early\s+|late\s+|mid\s+)?'?(?P<short>[2-9]0)'?s"),
    ("decade", rf"the\s+(?P<word>{'|'.join(DECADES)})"),
    ("date", rf"{_MONTH}\s+{_DAY}(?:,?\s+{_YEAR})?"),
    ("date", rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+{_YEAR})?"),
    ("date", rf"{_MONTH}(?:,|\s+of)?\s+{_YEAR}"),
    ("before", r"the\s+day\s+before\s+yesterday"),
    ("after", r"the\s+day\s+after\s+tomorrow"),
    ("ago", rf"(?:about\s+|around\s+)?{_COUNT}\s+{_UNIT}\s+(?:ago|back|(?:before|prior)(?=\s*(?:[.,;!?)]|$)))"),
    ("from_now", rf"in\s+{_COUNT}\s+{_UNIT}(?:'s?)?(?:\s+time)?"),
    ("from_now", rf"{_COUNT}\s+{_UNIT}\s+from\s+now"),
    ("yesterday", r"yesterday|last\s+night"),
    ("tomorrow", r"tomorrow"),
    ("today", r"today|tonight|this\s+(?:morning|afternoon|evening)|just\s+now|right\s+now"),
    ("other_day", r"the\s+other\s+(?:day|night)|recently|lately|these\s+days"),
    ("named", rf"(?P<which>last|this|this\s+past|the\s+past|past|next|coming|previous|earlier\s+this)\s+{_NAMED}"),
    ("since", rf"(?:since|in|during|from|until|by|back\s+in)\s+{_YEAR}"),
    ("month", rf"(?:since|in|during|this|early|late|mid|until|by)[\s-]+(?P<month>{'|'.join(MONTHS)})(?:,?\s+{_YEAR})?"),
    ("weekday", rf"on\s+(?:the\s+)?(?P<named>{'|'.join(WEEKDAYS)})"),
    ("bare_month", rf"(?P<month>{_BARE_MONTHS})"),
    ("bare_year", rf"(?<![$€£#%.,:/\-–\d]){_YEAR}(?![%:/\d]|[.,]\d|-\d)"),
)


def _compiled() -> re.Pattern[str]:
    """Join all patterns. Group names get a number, because Python allows each name only once."""
    parts = []
    for n, (kind, pattern) in enumerate(_PATTERNS):
        renamed = re.sub(r"\?P(<|=)(\w+)", rf"?P\1\2_{n}", pattern)
        parts.append(f"(?P<{kind}_{n}_all>{renamed})")
    return re.compile(r"\b(?:" + "|".join(parts) + r")\b", re.IGNORECASE)


_ANY = _compiled()

_AMBIGUOUS = re.compile(r"\b(?:may|march|mar|sun|sat|wed)\b")
"""Names of months and days that are other words in lower case: `this may help`."""

_FUTURE = re.compile(
    r"\b(?:will|shall|(?:go|com|head|fly|leav|hav|start|meet|play|perform|host)ing|gonna|plan(?:s|ning|ned)?"
    r"|can't wait|looking forward|hop(?:e|ing) to|want to|let's|see you|upcoming|next)\b|'ll\b",
    re.IGNORECASE,
)
_PAST = re.compile(r"\b(?:was|were|did|had|ago|last|went|came|saw|got|\w{2,}ed)\b", re.IGNORECASE)
"""With _FUTURE words in its sentence, `on Friday` is the next Friday, unless there are also _PAST words."""

_PERFECT = re.compile(r"(?:\b(?:have|has|had|never|not|first|best|longest)\b|n't\b|'ve\b)[^.!?;]*$", re.IGNORECASE)
"""If these words precede `in two years`, it is a duration and not a date."""


@lru_cache(maxsize=4096)
def find(text: str, anchor: date) -> tuple[DateRange, ...]:
    """Find the dates in a text. Dates that do not exist, such as 30 February, are skipped.

    Args:
        text: the text.
        anchor: the day on which the text was spoken. For a question, use any day and ignore the `relative` dates.

    Returns:
        The dates, in the order of the text.
    """
    found = []
    for match in _ANY.finditer(text):
        groups = {name: value for name, value in match.groupdict().items() if value is not None}
        kind = next(name for name in groups if name.endswith("_all")).rsplit("_", 2)[0]
        values = {name.split("_")[0]: value.lower() for name, value in groups.items() if not name.endswith("_all")}
        if kind == "bare_month" and not match.group()[0].isupper():
            continue
        if "year" not in values and _AMBIGUOUS.search(match.group()):
            continue
        if kind in _TITLE_KINDS and _is_title(text, match.start(), match.end()):
            continue
        if kind == "from_now" and _PERFECT.search(text[: match.start()]) and match.group()[:2].lower() == "in":
            continue
        if kind == "weekday" and _is_future(text, match):
            values["which"] = "next"
            kind = "named"
        try:
            when = resolve(kind, values, anchor, match.span())
        except (ValueError, OverflowError):  # for example the 31st of a month with 30 days, or a year out of range
            continue
        if when is not None:
            found.append(when)
    return tuple(found)


_TITLE_KINDS = frozenset(("yesterday", "today", "tomorrow", "named", "ago"))

_QUOTED = re.compile(r"[\"'“‘«„*_]$"), re.compile(r"^[\"'”’»“*_]")

_BEFORE_TITLE = re.compile(
    r"\b(?:songs?|films?|movies?|called|titled|named|sang|sings?|sung|singing|plays?|played|playing|hear|heard|cover|covers"
    r"|album|single|track|books?|novels?|poem|reading|watch|watched|watching|like|loves?|version\s+of|lyrics\s+of)\s+$",
    re.IGNORECASE,
)


def _is_title(text: str, start: int, end: int) -> bool:
    """Return True if a capitalised expression is a title: in quotation marks, after `song`, or before `by` a name."""
    if not text[start].isupper():
        return False
    before, after = text[max(0, start - 24) : start], text[end : end + 24]
    if _QUOTED[0].search(before) and _QUOTED[1].search(after):
        return True
    return bool(_BEFORE_TITLE.search(before)) or bool(re.match(r"\s+by\s+(?:the\s+)?[A-Z]", after))


def _is_future(text: str, match: re.Match[str]) -> bool:
    """Return True if the sentence around a match is about the future."""
    start = max(text.rfind(end, 0, match.start()) for end in ".!?;") + 1
    stop = re.compile(r"[.!?;]|$").search(text, match.end())
    sentence = text[start : stop.start() if stop else len(text)]
    return bool(_FUTURE.search(sentence)) and not _PAST.search(sentence)


def annotate(text: str, anchor: date) -> str:
    """Insert the resolved date after each relative expression: `last Friday {5 May 2023}`.

    Vague expressions do not change, and neither do those for the day itself, which the date line above shows.

    Args:
        text: the text.
        anchor: the day on which the text was spoken.
    """
    for when in reversed(find(text, anchor)):
        if when.relative and when.precision != "about" and not (when.start == when.end == anchor):
            text = f"{text[: when.span[1]]} {{{when.text}}}{text[when.span[1] :]}"
    return text
