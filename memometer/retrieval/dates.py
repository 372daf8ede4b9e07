"""Find the dates in a text and resolve relative ones against the day on which it was spoken.

Supported: yesterday, today, tonight, tomorrow, last night, the other day; last, this or next with a weekday, week,
weekend, month, season, year or name of a month; a number of days, weeks, weekends, months or years ago or from now;
and absolute dates: 5 May 2023, 05.05.2023, 2023-05-05, May 2023, spring 2023, 2023, the 1990s, the first week of 2023.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import Literal

from memometer.memory import format_date

Precision = Literal["day", "week", "weekend", "month", "season", "year", "decade", "about"]

MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
          "november", "december")  # fmt: skip
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
SEASONS = {"spring": 3, "summer": 6, "fall": 9, "autumn": 9, "winter": 12}  # the first month of each
NUMBERS = {word: n for n, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve".split())} | {
    "a": 1, "an": 1, "couple": 2, "a couple": 2, "a couple of": 2, "couple of": 2}  # fmt: skip
VAGUE = {"few": 3, "a few": 3, "several": 4, "some": 3}


@dataclass(frozen=True, slots=True)
class DateRange:
    """The days that an expression in a text refers to.

    Attributes:
        start: the first day.
        end: the last day.
        precision: the unit of the expression.
        span: the start and end of the expression in the text.
        relative: True if the expression was resolved against the day on which the text was spoken.
    """

    start: date
    end: date
    precision: Precision
    span: tuple[int, int]
    relative: bool

    @property
    def text(self) -> str:
        """The date as text, such as `5 May 2023`, `week of 1 May 2023`, `May 2023` or `2023`."""
        day = format_date(self.start)
        match self.precision:
            case "day":
                return day
            case "week":
                return f"week of {day}"
            case "weekend":
                return f"weekend of {day}"
            case "month":
                return f"{self.start:%B %Y}"
            case "season":
                return f"{self.start:%B %Y} on"
            case "year":
                return f"{self.start.year}"
            case "decade":
                return f"{self.start.year}s"
            case "about":
                return f"about {day}"


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
_DECADES = {"twenties": 20, "thirties": 30, "forties": 40, "fifties": 50, "sixties": 60, "seventies": 70,
            "eighties": 80, "nineties": 90}  # fmt: skip
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
    ("decade", rf"the\s+(?P<word>{'|'.join(_DECADES)})"),
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
            when = _resolve(kind, values, anchor, match.span())
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


def _resolve(kind: str, values: dict[str, str], anchor: date, span: tuple[int, int]) -> DateRange | None:
    day = timedelta(days=1)

    def at(start: date, end: date | None = None, precision: Precision = "day", *, relative: bool = True) -> DateRange:
        return DateRange(start, end or start, precision, span, relative)

    match kind:
        case "iso" | "dotted":
            return at(date(int(values["year"]), int(values["month"]), int(values["day"])), relative=False)
        case "slashed":
            first, second = int(values["first"]), int(values["second"])
            if first <= 12 and second <= 12 and first != second:
                return None  # the order of day and month is unknown
            month, number = (first, second) if first <= 12 else (second, first)
            return at(date(int(values["year"]), month, number), relative=False)
        case "year_month":
            return at(*_whole_month(int(values["year"]), int(values["month"])), "month", relative=False)
        case "week_of":
            return at(*_week_of(values, anchor), "week", relative=False)
        case "season_year":
            first_month = SEASONS[values["season"]]
            year = int(values["year"])
            last = (year * 12 + first_month - 1) + 2
            end = _whole_month(last // 12, last % 12 + 1)[1]
            return at(date(year, first_month, 1), end, "season", relative=False)
        case "decade":
            if "year" in values:
                year = int(values["year"])
            else:
                tens = int(values["short"]) if "short" in values else _DECADES[values["word"]]
                year = anchor.year // 100 * 100 + tens
                year -= 100 * (year > anchor.year)
            return at(date(year, 1, 1), date(year + 9, 12, 31), "decade", relative=False)
        case "date":
            month = _month(values["month"])
            year = int(values["year"]) if "year" in values else _nearest_year(anchor, month)
            if "day" not in values:
                return at(*_whole_month(year, month), "month", relative=False)
            return at(date(year, month, int(values["day"])), relative=False)
        case "yesterday":
            return at(anchor - day)
        case "before":
            return at(anchor - 2 * day)
        case "after":
            return at(anchor + 2 * day)
        case "tomorrow":
            return at(anchor + day)
        case "today":
            return at(anchor)
        case "other_day":
            return at(anchor - 7 * day, anchor, "about")
        case "ago" | "from_now":
            return _counted(values, anchor, -1 if kind == "ago" else 1, span)
        case "named":
            return _named(values["which"].split()[-1], values["named"], anchor, span)
        case "since" | "bare_year":
            year = int(values["year"])
            return at(date(year, 1, 1), date(year, 12, 31), "year", relative=False)
        case "month" | "bare_month":
            month = _month(values["month"])
            year = int(values["year"]) if "year" in values else _nearest_year(anchor, month)
            return at(*_whole_month(year, month), "month", relative=False)
        case "weekday":
            back = (anchor.weekday() - _weekday(values["named"])) % 7
            return at(anchor - back * day)
    return None


def _week_of(values: dict[str, str], anchor: date) -> tuple[date, date]:
    """Return the days of `the first week of January 2024` or `the last week of 2023`."""
    if "year2" in values:
        year = int(values["year2"])
        first, last = date(year, 1, 1), date(year, 12, 31)
    else:
        month = _month(values["month"])
        first, last = _whole_month(int(values["year"]) if "year" in values else _nearest_year(anchor, month), month)
    if values["which"] == "last":
        return last - timedelta(days=6), last
    start = first + timedelta(weeks=("first", "second", "third").index(values["which"]))
    return start, start + timedelta(days=6)


def _counted(values: dict[str, str], anchor: date, sign: int, span: tuple[int, int]) -> DateRange:
    word = re.sub(r"\s+", " ", values["count"]).strip()
    word = word.removesuffix(" of")
    vague = word in VAGUE
    n = sign * (VAGUE[word] if vague else int(word) if word.isdigit() else NUMBERS[word])
    unit = values["unit"]
    if unit in ("day", "night"):
        start = anchor + timedelta(days=n)
        return DateRange(start, start, "about" if vague else "day", span, True)
    if unit in ("week", "weekend"):
        start = anchor + timedelta(weeks=n)
        if unit == "weekend":
            return _weekend(start, span)
        monday = start - timedelta(days=start.weekday())
        return DateRange(
            start if not vague else monday, monday + timedelta(days=6), "about" if vague else "week", span, True
        )
    if unit == "month":
        months = anchor.year * 12 + anchor.month - 1 + n
        start, end = _whole_month(months // 12, months % 12 + 1)
        return DateRange(start, end, "month", span, True)
    return DateRange(date(anchor.year + n, 1, 1), date(anchor.year + n, 12, 31), "year", span, True)


def _named(which: str, name: str, anchor: date, span: tuple[int, int]) -> DateRange | None:
    step = {"last": -1, "past": -1, "previous": -1, "next": 1, "coming": 1}.get(which, 0)
    if name in MONTHS:
        month = _month(name)
        year = anchor.year + (step if step > 0 and month <= anchor.month else 0) - (step < 0 and month >= anchor.month)
        return DateRange(*_whole_month(year, month), "month", span, True)
    if name in SEASONS:
        return _season(name, step, anchor, span)
    if name == "weekend":
        return _weekend(anchor + timedelta(weeks=step), span) if step else _weekend(anchor, span)
    if name == "week":
        monday = anchor - timedelta(days=anchor.weekday()) + timedelta(weeks=step)
        return DateRange(monday, monday + timedelta(days=6), "week", span, True)
    if name == "month":
        months = anchor.year * 12 + anchor.month - 1 + step
        return DateRange(*_whole_month(months // 12, months % 12 + 1), "month", span, True)
    if name == "year":
        return DateRange(date(anchor.year + step, 1, 1), date(anchor.year + step, 12, 31), "year", span, True)
    weekday = _weekday(name)
    if step < 0:  # the last such weekday before today
        start = anchor - timedelta(days=(anchor.weekday() - weekday - 1) % 7 + 1)
    elif step > 0:
        start = anchor + timedelta(days=(weekday - anchor.weekday() - 1) % 7 + 1)
    else:
        start = anchor + timedelta(days=weekday - anchor.weekday())
    return DateRange(start, start, "day", span, True)


def _season(name: str, step: int, anchor: date, span: tuple[int, int]) -> DateRange:
    """Resolve a season.

    In autumn, `last summer` is the one that just ended. In July, it is last year's. From January to May, `this winter`
    is the one that began in December.
    """
    first = SEASONS[name]
    began = anchor.year if anchor.month >= first else anchor.year - 1  # the year in which the latest one began
    ongoing = (anchor.month - first) % 12 < 3
    if step < 0:
        year = began - 1 if ongoing else began
    elif step > 0:
        year = began + 1
    else:
        year = began if ongoing or (first == 12 and anchor.month <= 5) else anchor.year
    last = (year * 12 + first - 1) + 2
    return DateRange(date(year, first, 1), _whole_month(last // 12, last % 12 + 1)[1], "season", span, True)


def _weekend(near: date, span: tuple[int, int]) -> DateRange:
    """Return the Saturday and Sunday of the week of `near`, which begins on Monday."""
    saturday = near + timedelta(days=5 - near.weekday())
    return DateRange(saturday, saturday + timedelta(days=1), "weekend", span, True)


def _whole_month(year: int, month: int) -> tuple[date, date]:
    following = date(year + month // 12, month % 12 + 1, 1)
    return date(year, month, 1), following - timedelta(days=1)


def _nearest_year(anchor: date, month: int) -> int:
    """Return the year for a month without a year: the one that brings it closest to the day `anchor`."""
    return min(
        (anchor.year - 1, anchor.year, anchor.year + 1),
        key=lambda y: abs((y - anchor.year) * 12 + month - anchor.month),
    )


def _month(name: str) -> int:
    return next(n for n, month in enumerate(MONTHS, start=1) if month.startswith(name.rstrip(".")[:3]))


def _weekday(name: str) -> int:
    return next(n for n, weekday in enumerate(WEEKDAYS) if weekday.startswith(name[:3]))
