"""Bounded reading of JSON and JSON Lines files of unknown origin. Every fault is one sentence with the file's name."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memometer.benchmarks.protocol import DataError

MAX_BYTES = 512 << 20
"""Default limit for the size of a file."""

MAX_LINE_BYTES = 256 << 20
"""Limit for one line of JSON Lines: one conversation."""

LINES = (".jsonl", ".ndjson")
SUFFIXES = (".json", *LINES)


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file. A link to one is followed; a pipe or a device is refused and never opened.

    Args:
        path: The file.
        max_bytes: Limit for its size.

    Raises:
        DataError: It is not a regular file, too large, or cannot be read.
    """
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise DataError(f"{path} is a folder; expected a file.")
        if not stat.S_ISREG(about.st_mode):
            raise DataError(f"{path} is not a regular file but a pipe, socket or device; save its content to a file.")
        if about.st_size > max_bytes:
            raise DataError(f"{path} has {about.st_size:,} bytes; the limit is {max_bytes:,} bytes. Split the file.")
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return file.read(max_bytes + 1)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"cannot read {str(path)!r}, which does not exist.") from error
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r} ({error.strerror or error}).") from error
    except ValueError as error:  # a null character in the path
        raise DataError(f"cannot read {str(path)!r} ({error}).") from error


def sha256(content: bytes) -> str:
    """The digest of a file's content."""
    return hashlib.sha256(content).hexdigest()


def text_of(content: bytes, path: Path) -> str:
    """Decode UTF-8, with or without a byte-order mark.

    Raises:
        DataError: The content is empty or not UTF-8.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is UTF-16; save it as UTF-8.")
    if not content.strip(b"\xef\xbb\xbf \t\r\n"):
        raise DataError(f"{path} is empty.")
    if content.startswith((b"PK\x03\x04", b"\x1f\x8b", b"%PDF", b"SQLite format 3")):
        raise DataError(f"{path} is not text but an archive, database or document; unpack or export it first.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = " It looks like UTF-16." if content[:200].count(0) > 20 else ""
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start:,}: {error.reason}); save it as UTF-8.{wide}"
        ) from error


def parse(text: str, where: str) -> Any:
    """Parse strict JSON: no NaN, no repeated keys, no extreme nesting.

    Args:
        text: The JSON text.
        where: The file, and its line in JSON Lines, for messages.

    Raises:
        DataError: The text is not such JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise DataError(f"{where}: values are nested too deeply.") from error
    except json.JSONDecodeError as error:
        more = " Text follows the first value; JSON Lines needs the ending .jsonl." if error.msg == "Extra data" else ""
        if error.pos >= len(text.rstrip()) and not more:
            more = " The file may be truncated."
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{where} is not valid JSON ({error.msg} at {place}).{more}") from error
    except ValueError as error:  # a number with thousands of digits, or from the two hooks
        raise DataError(f"{where} is not valid JSON ({error}).") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice in one object")
    return found


def values(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield each value of a file with its place: the one value of JSON, or one per line of JSON Lines.

    Raises:
        DataError: The file is not UTF-8 or not JSON.
    """
    text = text_of(content, path)
    if path.suffix.lower() not in LINES:
        yield str(path), parse(text, str(path))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path}, line {number:,}"
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{where} has {len(line):,} characters; the limit is {MAX_LINE_BYTES:,}.")
        if line.strip():
            yield where, parse(line, where)


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> tuple[Any, str]:
    """Read the one value of a JSON file, and the digest of the file.

    Raises:
        DataError: The file cannot be read or is not JSON.
    """
    content = read_bytes(path, max_bytes=max_bytes)
    return parse(text_of(content, path), str(path)), sha256(content)


def files_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The JSON and JSON Lines files in a folder, by name, and the names of everything else in it.

    Raises:
        DataError: The folder cannot be read, or has no such file.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot read {str(folder)!r} ({error.strerror or error}).") from error
    chosen = [path for path in entries if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not chosen:
        raise DataError(f"the folder {folder} has no file that ends in {', '.join(SUFFIXES)}.")
    return chosen, [path.name for path in entries if path not in chosen]


_SPACE = re.compile(r"\s*")
_SEPARATOR = re.compile(r"\s*,?\s*")


def items(path: Path, *, max_bytes: int = MAX_BYTES, chunk: int = 16 << 20) -> Iterator[tuple[int, Any]]:
    """Yield the items of a JSON array one by one, so that a file of gigabytes is never in memory as a whole.

    Args:
        path: The file.
        max_bytes: Limit for its size.
        chunk: Characters to read at a time.

    Yields:
        The position of an item, from 0, and the item.

    Raises:
        DataError: The file cannot be read or is not a JSON array.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    if not path.is_file():
        raise DataError(f"{path} is not a regular file.")
    if (size := path.stat().st_size) > max_bytes:
        raise DataError(f"{path} has {size:,} bytes; the limit is {max_bytes:,} bytes.")
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(chunk)
            start = _SPACE.match(text).end()  # type: ignore[union-attr]
            if not text.startswith("[", start):
                raise DataError(f"{path} is not a JSON array.")
            n, start, ended = 0, start + 1, False
            while True:
                start = _SEPARATOR.match(text, start).end()  # type: ignore[union-attr]
                if text.startswith("]", start):
                    return
                try:
                    item, end = decoder.raw_decode(text, start)
                    # A number or word could go on in the next chunk; an object or text has its own end.
                    if end == len(text) and not ended and text[-1] not in '}]"':
                        raise json.JSONDecodeError("incomplete", text, end)
                except json.JSONDecodeError as error:
                    text, start = text[start:], 0
                    if more := file.read(max(chunk, len(text))):
                        text += more
                    elif not ended:
                        ended = True
                    else:
                        message = f"{path}, item {n}: not valid JSON ({error.msg}). It may be truncated."
                        raise DataError(message) from error
                    continue
                yield n, item
                n, start = n + 1, end
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r} ({error.strerror or error}).") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not UTF-8 text, or nested too deeply ({type(error).__name__}).") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not valid JSON ({error}).") from error


def file_sha256(path: Path) -> str:
    """The digest of a file that is too large to be in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
