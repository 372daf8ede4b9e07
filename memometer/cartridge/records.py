"""The records of a cartridge: turns or episodes as lines of JSON, compressed with zstd."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import zstandard

from memometer.cartridge.container import BLOCK, CartridgeError
from memometer.memory import Turn
from memometer.store.episode import Episode
from memometer.store.migrate import batches
from memometer.store.turn_conversion import turn_of

MAX_BYTES = 1 << 30
"""Default limit for the decompressed records of a cartridge."""

MAX_ROW_BYTES = 16 << 20

_LEVEL = 3
_WINDOW_BYTES = 8 << 20  # limits the decompressor's memory

Row = dict[str, Any]

_OPTIONAL = ("caption", "role")
_TURN = {"id": str, "speaker": str, "text": str, "session": int, "said_at": str, "line": str}
_EPISODE = {
    "id": str, "text": str, "at": float, "importance": float, "uses": int, "archived": bool, "sources": list,
    "details": dict, "vector": bool,
}  # fmt: skip


# ---------------------------------------------------------------- the compressed file


def write(rows: Iterable[Row], path: Path) -> dict[str, int]:
    """Write rows to a file and return their `count` and their decompressed size in `bytes`."""
    count = size = 0
    with path.open("wb") as file, zstandard.ZstdCompressor(level=_LEVEL).stream_writer(file) as writer:
        for batch in batches(rows):
            try:
                block = "".join(map(_line, batch)).encode()
            except UnicodeEncodeError as error:
                raise CartridgeError(f"a text contains half of a surrogate pair ({error})") from error
            writer.write(block)
            count, size = count + len(batch), size + len(block)
    return {"count": count, "bytes": size}


def _line(row: Row) -> str:
    line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    if len(line) > MAX_ROW_BYTES // 4:
        raise CartridgeError(f"a text of {len(line):,} characters is too long for a cartridge")
    return line


def read(stream: IO[bytes], *, count: int, size: int, limit: int) -> Iterator[Any]:
    """Yield the rows of a compressed stream.

    Args:
        stream: compressed rows.
        count: number of rows, from the manifest.
        size: decompressed size in bytes, from the manifest. Decompression stops soon after it is exceeded.
        limit: limit for `size`.

    Raises:
        CartridgeError: the stream is damaged or does not match `count` and `size`.
    """
    if size > limit:
        raise CartridgeError(f"its records have {size:,} bytes; the limit is {limit:,} bytes (max_record_bytes)")
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    read_bytes = read_rows = 0
    try:
        with decompressor.stream_reader(stream) as reader:
            lines = io.BufferedReader(reader, BLOCK)
            while line := lines.readline(MAX_ROW_BYTES + 1):
                read_bytes += len(line)
                read_rows += 1
                if read_bytes > size or not line.endswith(b"\n"):
                    raise CartridgeError("its records are longer than its manifest says")
                yield json.loads(line)
    except (zstandard.ZstdError, ValueError, RecursionError) as error:
        if isinstance(error, CartridgeError):
            raise
        raise CartridgeError(f"its records are damaged ({error})") from error
    if (read_bytes, read_rows) != (size, count):
        raise CartridgeError("its records are fewer than its manifest says")


# ---------------------------------------------------------------- turns and episodes as rows


def turn_to_row(turn: Turn, line: str) -> Row:
    """Convert a turn and its line."""
    row = {
        "id": turn.id,
        "speaker": turn.speaker,
        "text": turn.text,
        "session": turn.session,
        "said_at": turn.said_at.isoformat(),
        "line": line,
    }
    hidden = {} if turn.audience is None else {"audience": list(turn.audience)}
    return row | {name: value for name in _OPTIONAL if (value := getattr(turn, name)) is not None} | hidden


def turn_from_row(row: Any) -> tuple[Turn, str]:
    """Return the turn and its line. Raises CartridgeError for an invalid row."""
    optional = {name: row.pop(name, None) for name in _OPTIONAL} if isinstance(row, dict) else {}
    audience = row.pop("audience", None) if isinstance(row, dict) else None
    _check(row, _TURN)
    if audience is not None and not (isinstance(audience, list) and all(type(name) is str for name in audience)):
        raise CartridgeError("a turn has an invalid audience")
    for name, value in optional.items():
        if value is not None and type(value) is not str:
            raise CartridgeError(f"a turn has an invalid {name}")
    try:
        said_at = datetime.fromisoformat(row["said_at"])
    except ValueError as error:
        raise CartridgeError(f"a turn has an invalid time ({error})") from error
    hidden = None if audience is None else tuple(audience)
    turn = Turn(row["id"], row["speaker"], row["text"], row["session"], said_at, **optional, audience=hidden)
    return turn, row["line"]


def episode_to_row(episode: Episode) -> Row:
    """Convert an episode. Its vector is stored elsewhere; `vector` is true if it has one."""
    row = {field.name: getattr(episode, field.name) for field in fields(episode) if field.name != "codes"}
    row["at"], row["importance"] = float(episode.at), float(episode.importance)
    return {**row, "sources": list(episode.sources), "details": dict(episode.details), "vector": bool(episode.codes)}


def episodes_from_rows(rows: Iterable[Any], vectors: Iterator[bytes]) -> Iterator[Episode]:
    """Yield the episodes; those with a vector take the next of `vectors`. Raises CartridgeError for an invalid row."""
    for row in rows:
        _check(row, _EPISODE)
        has_vector = row.pop("vector")
        if not all(type(source) is str for source in row["sources"]):
            raise CartridgeError("an episode has invalid sources")
        if not all(type(value) in (str, int, float) for value in row["details"].values()):
            raise CartridgeError("an episode has invalid details")
        codes = next(vectors, None) if has_vector else b""
        if codes is None:
            raise CartridgeError("it has fewer vectors than its records say")
        episode = Episode(**{**row, "sources": tuple(row["sources"]), "codes": codes})
        if not math.isfinite(episode.at + episode.importance) or episode.uses < 0:
            raise CartridgeError("an episode has a number out of range")
        turn_of(episode)  # raises ValueError for an invalid time or session
        yield episode
    if next(vectors, None) is not None:
        raise CartridgeError("it has more vectors than its records say")


def _check(row: Any, types: dict[str, type]) -> None:
    if not isinstance(row, dict) or row.keys() != types.keys():
        raise CartridgeError(f"the fields of a record are not {', '.join(types)}")
    for name, kind in types.items():
        if type(row[name]) is not kind:
            raise CartridgeError(f"the field {name} of a record is not of type {kind.__name__}")
