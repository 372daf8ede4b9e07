"""The days of a date expression: calendar arithmetic without text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
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
DECADES = {"twenties": 20, "thirties": 30, "forties": 40, "fifties": 50, "sixties": 60, "seventies": 70,
            "eighties": 80, "nineties": 90}  # fmt: skip


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


def resolve(kind: str, values: dict[str, str], anchor: date, span: tuple[int, int]) -> DateRange | None:
    """Return the days of an expression.

    Args:
        kind: the kind of the expression, a name of a pattern in `memometer.retrieval.dates`.
        values: its parts in lower case, such as `month` and `year`.
        anchor: the day on which the text was spoken.
        span: the start and end of the expression in the text.

    Returns:
        The days; None if the order of day and month is unknown.

    Raises:
        ValueError: the date does not exist.
        OverflowError: the date is outside the calendar.
    """
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
                tens = int(values["short"]) if "short" in values else DECADES[values["word"]]
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
    word = " ".join(values["count"].split())
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
