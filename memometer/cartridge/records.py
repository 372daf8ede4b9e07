"""Records as lines of JSON, compressed as they are written and bounded as they are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import zstandard

from memometer.cartridge.container import BLOCK, CartridgeError, Spool, Stream

MOST_BYTES = 1 << 30
"""What records may unpack to, unless more is allowed."""

MOST_ROW_BYTES = 16 << 20

_LEVEL = 3
_WINDOW_BYTES = 8 << 20  # a decompressor's memory is its window
_AT_ONCE = 500  # rows


def write(rows: Iterable[dict[str, Any]], spool: Spool) -> dict[str, int]:
    """Write rows, and say how many there are and how many bytes they unpack to."""
    count = size = 0
    with zstandard.ZstdCompressor(level=_LEVEL).stream_writer(spool, closefd=False) as packer:  # type: ignore[arg-type]
        lines: list[str] = []

        def flush() -> int:
            try:
                block = "".join(lines).encode()
            except UnicodeEncodeError as error:
                raise CartridgeError(f"a text holds half a character ({error}); a cartridge cannot hold it") from error
            packer.write(block)
            lines.clear()
            return len(block)

        for row in rows:
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n")
            if len(lines[-1]) > MOST_ROW_BYTES // 4:
                raise CartridgeError(f"a text of {len(lines[-1]):,} characters is too long for a cartridge")
            count += 1
            if len(lines) == _AT_ONCE:
                size += flush()
        size += flush()
    return {"count": count, "bytes": size}


def read(stream: Stream, *, count: int, size: int, most_bytes: int) -> Iterator[Any]:
    """The rows, of which there must be so many, in so many bytes.

    Whatever the compressed frame says of itself, no more than `size` bytes and one block are unpacked.
    Raises CartridgeError.
    """
    if size > most_bytes:
        raise CartridgeError(
            f"its records unpack to {size:,} bytes and may unpack to {most_bytes:,}; allow more with most_bytes"
        )
    unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    unpacked = found = 0
    rest = b""
    try:
        with unpacker.stream_reader(stream, closefd=False) as reader:  # type: ignore[arg-type]
            while block := reader.read(BLOCK):
                unpacked += len(block)
                if unpacked > size:
                    raise CartridgeError("its records unpack to more than its manifest says")
                *lines, rest = (rest + block).split(b"\n")
                if len(rest) > MOST_ROW_BYTES:
                    raise CartridgeError("it holds a record that is too long")
                for line in lines:
                    yield json.loads(line)
                found += len(lines)
    except (zstandard.ZstdError, ValueError, RecursionError) as error:
        if isinstance(error, CartridgeError):
            raise
        raise CartridgeError(f"its records cannot be read ({error})") from error
    if rest or unpacked != size or found != count:
        raise CartridgeError("its records are not as many as its manifest says")
