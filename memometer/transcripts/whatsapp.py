"""WhatsApp's text exports, of Android and iOS, in the date formats of many locales.

    31.12.23, 22:42 - Ada: Happy new year!              Android
    [12/31/23, 10:42:04 PM] Ada: Happy new year!        iOS

A message may have several lines. Lines with a time and without a name are system messages.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from memometer.benchmarks.protocol import DataError
from memometer.transcripts.message import Message, Transcript

ORDERS = ("dmy", "mdy", "ymd")

_HALF = r"(?P<half>[APap]\.?[\s\u00a0\u202f]?[Mm]\b\.?)"
_CLOCK = rf"(?P<hour>\d{{1,2}})[:.](?P<minute>\d\d)(?:[:.](?P<second>\d\d))?[\s\u00a0\u202f]*{_HALF}?"
_DATE = r"(?P<one>\d{1,4})(?P<mark>[./-])\s?(?P<two>\d{1,2})[./-]\s?(?P<three>\d{2,4})\.?"
_STAMP = rf"{_DATE},?[\s\u00a0\u202f]+(?:(?:à|at|um|a las)\s+)?{_CLOCK}"
_LINE = re.compile(rf"^(?:\[{_STAMP}\]\s?|{_STAMP.replace('?P<', '?P<a_')}\s+[-–]\s)(?P<rest>.*)$")
_NAME = re.compile(r"^(?P<name>[^:\n]{1,80}):(?:\s(?P<text>.*))?$")
_INVISIBLE = re.compile("[\u200e\u200f\u202a-\u202e\ufeff]")

_MEDIA = re.compile(
    r"<[^<>]*(?:omitted|ausgeschlossen|weggelassen|omis|omess[oi]|omitid[oa]s?|ocult[oa]s?|weggelaten|utelämnat|"
    r"pominięto|hariç|опущен|省略)[^<>]*>"
    r"|(?:image|photo|video|audio|sticker|gif|document|contact card|voice message|"
    r"bild|foto|imagen?|vidéo|documento|dokument)s? (?:omitted|weggelassen|absente?|omess[oa]|omitid[oa]|weggelaten)"
    r"|<(?:attached|anhang|pièce jointe|adjunto|allegato)[^<>]*>"
    r"|[\w-]+\.\w{2,5} \((?:file attached|datei angehängt|fichier joint|archivo adjunto|file allegato)\)",
    re.IGNORECASE,
)
_DELETED = re.compile(
    r"^(?:this message was deleted|you deleted this message|diese nachricht wurde gelöscht|"
    r"du hast diese nachricht gelöscht|ce message a été supprimé|(?:se )?eliminó este mensaje|"
    r"questo messaggio è stato eliminato|dit bericht is verwijderd|esta mensagem foi apagada)\.?$",
    re.IGNORECASE,
)
_EDITED = re.compile(
    r"\s*<(?:this message was edited|diese nachricht wurde bearbeitet|[^<>]*edit[^<>]*)>$", re.IGNORECASE
)
LONGEST_RARE_NAME = 25
"""A longer name that occurs once is the beginning of a system message with a colon."""


@dataclass
class _Entry:
    """A line with a time, and the lines that belong to it."""

    parts: tuple[int, int, int]
    mark: str
    clock: tuple[int, int, int]
    half: str
    lines: list[str]


def is_whatsapp(lines: Iterable[str]) -> bool:
    """True if the first line that is not blank has WhatsApp's time."""
    first = next((line for line in lines if line.strip()), "")
    return bool(_LINE.match(_INVISIBLE.sub("", first)))


def read(text: str, where: str, *, order: str | None = None) -> Transcript:
    """Read an export.

    Args:
        text: The content of the file.
        where: The file, for messages.
        order: One of ORDERS; None finds the order of the dates from all of them.

    Raises:
        DataError: There is no message, or a date is impossible in the order.
    """
    found = Transcript("WhatsApp")
    entries = _entries(text, found)
    if not entries:
        raise DataError(f"{where} has no message of a WhatsApp export.")
    order = order or _order_of(entries, found)
    names: Counter[str] = Counter(match["name"] for entry in entries if (match := _NAME.match(entry.lines[0])))
    for n, entry in enumerate(entries, start=1):
        time = _time(entry, order)
        if time is None:
            one, two, three = entry.parts
            raise DataError(
                f"{where}, message {n}: {one}{entry.mark}{two}{entry.mark}{three} is not a date in the order {order}; "
                "name the order with --date-order dmy, mdy or ymd."
            )
        match = _NAME.match(entry.lines[0])
        if match is None or (names[match["name"]] == 1 and len(match["name"]) > LONGEST_RARE_NAME):
            found.left_out["system message"] += 1
            continue
        body = _EDITED.sub("", "\n".join([match["text"] or "", *entry.lines[1:]]).strip())
        media = bool(_MEDIA.search(body))
        body = _MEDIA.sub("", body).strip()
        if _DELETED.match(body):
            found.left_out["deleted message"] += 1
        elif not body:
            found.left_out["media without text" if media else "empty message"] += 1
        else:
            found.messages.append(Message(body, match["name"].strip(), time, "attachment" if media else None))
    return found


def _entries(text: str, found: Transcript) -> list[_Entry]:
    entries: list[_Entry] = []
    for raw in text.splitlines():
        line = _INVISIBLE.sub("", raw)
        if match := _LINE.match(line):
            groups = match.groupdict()
            value = {name: groups.get(name) or groups.get(f"a_{name}") or "" for name in _FIELDS}
            entries.append(
                _Entry(
                    (int(value["one"]), int(value["two"]), int(value["three"])),
                    value["mark"],
                    (int(value["hour"]), int(value["minute"]), int(value["second"] or 0)),
                    value["half"][:1].lower(),
                    [match["rest"]],
                )
            )
        elif entries:
            entries[-1].lines.append(line)
        elif line.strip():
            found.left_out["line before the first message"] += 1
    return entries


_FIELDS = ("one", "mark", "two", "three", "hour", "minute", "second", "half")


def _order_of(entries: Sequence[_Entry], found: Transcript) -> str:
    """The order of day, month and year in which all dates exist and run back least."""
    counts = {}
    for order in ORDERS:
        times = [_time(entry, order) for entry in entries]
        if all(times):
            known = [time for time in times if time]
            counts[order] = sum(b < a for a, b in pairwise(known))
    if not counts:
        return "dmy"
    best = [order for order in counts if counts[order] == min(counts.values())]
    if len(best) == 1:
        return best[0]
    likely = "mdy" if "mdy" in best and entries[0].mark == "/" and any(e.half for e in entries) else best[0]
    found.notices.append(
        f"Its dates can be read in the orders {' and '.join(best)}; {likely} is assumed. Choose with --date-order."
    )
    return likely


def _time(entry: _Entry, order: str) -> datetime | None:
    day, month, year = (entry.parts[order.index(part)] for part in "dmy")
    if order == "ymd" and entry.parts[0] < 1000:
        return None
    hour, minute, second = entry.clock
    if entry.half:
        hour = hour % 12 + 12 * (entry.half == "p")
    try:
        return datetime(year + 2000 if year < 100 else year, month, day, hour, minute, second)
    except ValueError:
        return None
