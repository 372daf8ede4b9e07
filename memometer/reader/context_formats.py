"""Formats of turns in the prompt: TOON, JSON, YAML or CSV records instead of lines under dates.

A record has a date, a speaker and a text, with the same words as a line. Lines are the default, because they need the
fewest tokens (benchmarks/context_formats.py): a date appears once per session, and nothing is quoted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from memometer.memory import Turn, TurnFormat

FORMATS = ("lines", "toon", "json", "yaml", "csv")

Record = dict[str, str]


class FormatUnavailable(RuntimeError):
    """The library of a format is not installed."""


def record(turn: Turn, line: str) -> Record:
    """Return a turn as a record: its date, and the two parts of its line."""
    content = line.removesuffix("\n")
    own = " ".join(turn.speaker.split())
    if own and content.startswith(f"{own}:"):  # a speaker's name may hold a colon
        return {
            "date": turn.header.removeprefix("# ").strip(),
            "speaker": own,
            "text": content.removeprefix(f"{own}:").strip(),
        }
    speaker, colon, text = content.partition(": ")
    if not colon:  # the text or the speaker is empty
        speaker, text = (content[:-1], "") if content.endswith(":") else ("", content)
    return {"date": turn.header.removeprefix("# ").strip(), "speaker": speaker, "text": text}


@dataclass(frozen=True)
class Toon:
    """Token-Oriented Object Notation: a table that names its fields once.

    Commas separate the fields; tabs would avoid some quotes, but need as many tokens.
    """

    name = "toon"

    def row(self, turn: Turn, line: str) -> str:
        return self._encoded([record(turn, line)]).partition("\n")[2]

    def text(self, shown: Sequence[tuple[Turn, str]]) -> str:
        return self._encoded([record(*each) for each in shown])

    def _encoded(self, records: Sequence[Record]) -> str:
        text: str = _toons().dumps(records)
        return text + "\n"


@dataclass(frozen=True)
class Json:
    """A compact array with one object per line."""

    name = "json"

    def row(self, turn: Turn, line: str) -> str:
        return json.dumps(record(turn, line), ensure_ascii=False, separators=(",", ":")) + ",\n"

    def text(self, shown: Sequence[tuple[Turn, str]]) -> str:
        return "[" + "".join(self.row(*each) for each in shown).removesuffix(",\n") + "]\n"


@dataclass(frozen=True)
class Yaml:
    """A list of mappings."""

    name = "yaml"

    def row(self, turn: Turn, line: str) -> str:
        return _yaml(*record(turn, line).items())

    def text(self, shown: Sequence[tuple[Turn, str]]) -> str:
        return "".join(self.row(*each) for each in shown)


@dataclass(frozen=True)
class Csv:
    """A line of field names, then one line per turn, quoted as in RFC 4180."""

    name = "csv"

    def row(self, turn: Turn, line: str) -> str:
        return self._written([list(record(turn, line).values())])

    def text(self, shown: Sequence[tuple[Turn, str]]) -> str:
        records = [record(*each) for each in shown]
        return self._written([list(records[0]), *(list(each.values()) for each in records)])

    def _written(self, rows: Sequence[Sequence[str]]) -> str:
        target = io.StringIO()
        csv.writer(target, lineterminator="\n").writerows(rows)
        return target.getvalue()


def form(name: str) -> TurnFormat | None:
    """Return a format by its name in `FORMATS`, or None for lines.

    Raises:
        ValueError: the name is unknown.
        FormatUnavailable: the library of the format is not installed.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; use one of {', '.join(FORMATS)}.")
    if name == "toon":
        _toons()
    forms: dict[str, TurnFormat] = {each.name: each for each in (Toon(), Json(), Yaml(), Csv())}
    return forms.get(name)


@lru_cache(maxsize=1 << 16)  # PyYAML takes a millisecond per turn, and most turns are needed for every question
def _yaml(*fields: tuple[str, str]) -> str:
    import yaml

    text: str = yaml.safe_dump([dict(fields)], allow_unicode=True, sort_keys=False, width=float("inf"))
    return text


@cache
def _toons() -> Any:
    try:
        import toons
    except ImportError as error:
        raise FormatUnavailable(
            "TOON needs the toons library; pip install -c constraints.txt '.[toon]', or use another --context-format."
        ) from error
    return toons
