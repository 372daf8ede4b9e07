"""Turns as records in the prompt: TOON, JSON, YAML or CSV in place of lines under dates.

A record has a date, a speaker and a text, in the very words that lines show. Lines are the default, for they say the
same in the fewest tokens (benchmarks/formats.py): a date stands once a session, and nothing is quoted.
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
    """The library of a format is not installed; the message is one sentence for the user."""


def record(turn: Turn, line: str) -> Record:
    """A turn in three fields: under which date it stands, and the two parts of its line."""
    said = line.removesuffix("\n")
    speaker, colon, text = said.partition(": ")
    if not colon:  # nothing was said, or nobody is named
        speaker, text = (said[:-1], "") if said.endswith(":") else ("", said)
    return {"date": turn.header.removeprefix("# ").strip(), "speaker": speaker, "text": text}


@dataclass(frozen=True)
class Toon:
    """Token-Oriented Object Notation: a table with its fields named once. Commas part them: with tabs fewer texts are
    quoted, and as many tokens needed."""

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
    """A compact array, an object a line."""

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
    """A line of field names, then a line a turn, as RFC 4180 quotes it."""

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
    """The form of a name in `FORMATS`; None for lines. Raises FormatUnavailable, ValueError."""
    if name not in FORMATS:
        raise ValueError(f"the format {name!r} is not known; it may be {', '.join(FORMATS)}.")
    if name == "toon":
        _toons()
    forms: dict[str, TurnFormat] = {each.name: each for each in (Toon(), Json(), Yaml(), Csv())}
    return forms.get(name)


@lru_cache(maxsize=1 << 16)  # PyYAML takes a millisecond for each, and every question asks for most of them again
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
