"""The inverted index of a SQLite store: for each scope and term the rows that contain it, in blocks.

A block is a list of 3-byte entries: the row's distance from the block's first row, and the count of the term in the
row. The table is ordinary, so that `PRAGMA secure_delete` overwrites removed entries; a full-text index of SQLite would
keep removed terms until it is rebuilt.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import numpy as np

from memometer.store.sqlite_file import SQLiteFile

ENTRY = np.dtype([("offset", "<u2"), ("count", "u1")])
_PACKED = struct.Struct("<HB")  # the same, for few entries
MAX_OFFSET, MAX_COUNT = 2**16 - 1, 255
MAX_BLOCK_BYTES = 1200
"""Size of a block, which an insertion rewrites."""

Places = list[tuple[int, int]]
"""(row, count of a term in the row), rows ascending."""


def add(file: SQLiteFile, scope: int, occurrences: Mapping[str, Places]) -> None:
    """Add rows to the index.

    Args:
        file: the store's file, in a transaction.
        scope: number of the scope.
        occurrences: by term. A term's rows are either new (greater than all others), or a single row.
    """
    for term, places in occurrences.items():
        first, entries = _block_of(file, scope, term, places[0][0]) or (places[0][0], b"")
        start, _ = _position(first, entries, places[0][0])
        _write(file, scope, term, first, entries[:start], places, entries[start:])


def remove(file: SQLiteFile, scope: int, row: int, terms: Iterable[str]) -> None:
    """Remove a row from the index."""
    for term in set(terms):
        if block := _block_of(file, scope, term, row):
            first, entries = block
            start, end = _position(first, entries, row)
            _write(file, scope, term, first, entries[:start] + entries[end:], [], b"")


def rows_with(file: SQLiteFile, scope: int, term: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that contain a term, ascending, and its count in each."""
    query = "SELECT first, entries FROM postings WHERE scope = ? AND term = ? ORDER BY first"
    blocks = file.execute(query, scope, term).fetchall()
    entries = np.frombuffer(b"".join(block for _, block in blocks), ENTRY)
    firsts = np.array([first for first, _ in blocks], np.int64)
    rows = np.repeat(firsts, [len(block) // ENTRY.itemsize for _, block in blocks]) + entries["offset"]
    counts = entries["count"].astype(float)
    if np.any(rows[1:] == rows[:-1]):  # a count above MAX_COUNT has several entries
        rows, places = np.unique(rows, return_inverse=True)
        counts = np.bincount(places, counts)
    return rows, counts


def _block_of(file: SQLiteFile, scope: int, term: str, row: int) -> tuple[int, bytes] | None:
    """Return the first row and the entries of the block to which a row belongs."""
    query = (
        "SELECT first, entries FROM postings WHERE scope = ? AND term = ? AND first <= ? ORDER BY first DESC LIMIT 1"
    )
    block: tuple[int, bytes] | None = file.one(query, scope, term, row)
    return block


def _position(first: int, entries: bytes, row: int) -> tuple[int, int]:
    """Return where the entries of a row start and end, in bytes; where they would be if there are none."""
    offsets = np.frombuffer(entries, ENTRY)["offset"].astype(np.int64)
    start, end = np.searchsorted(offsets, row - first, "left"), np.searchsorted(offsets, row - first, "right")
    return int(start) * ENTRY.itemsize, int(end) * ENTRY.itemsize


def _write(file: SQLiteFile, scope: int, term: str, first: int, before: bytes, places: Places, after: bytes) -> None:
    """Replace the block that starts at `first`, by several blocks if it is too large, or by none if it is empty.

    Args:
        file: the store's file.
        scope: number of the scope.
        term: the term.
        first: the first row of the block.
        before: entries before the new ones.
        places: the new ones.
        after: entries after the new ones.
    """
    last = places[-1][0] if places else first
    size = len(before) + len(after) + ENTRY.itemsize * sum(-(-count // MAX_COUNT) for _, count in places)
    if not size:
        file.execute("DELETE FROM postings WHERE scope = ? AND term = ? AND first = ?", scope, term, first)
    elif not places or (last - first <= MAX_OFFSET and size <= MAX_BLOCK_BYTES):
        _put(file, scope, term, first, before + _encoded(first, places) + after)
    else:
        rest = [(first + offset, count) for offset, count in _PACKED.iter_unpack(after)]
        if before:
            _put(file, scope, term, first, before)
        origin, block = places[0][0] if before else first, list[tuple[int, int]]()
        for row, count in (*places, *rest):
            is_full = row - origin > MAX_OFFSET or len(block) * ENTRY.itemsize >= MAX_BLOCK_BYTES
            if block and is_full and block[-1][0] != row:  # a row is in one block
                _put(file, scope, term, origin, _encoded(origin, block))
                origin, block = row, []
            block.append((row, count))
        _put(file, scope, term, origin, _encoded(origin, block))


def _put(file: SQLiteFile, scope: int, term: str, first: int, entries: bytes) -> None:
    file.execute("INSERT OR REPLACE INTO postings VALUES (?, ?, ?, ?)", scope, term, first, entries)


def _encoded(first: int, places: Places) -> bytes:
    entries = []
    for row, count in places:
        while count > 0:
            entries.append(_PACKED.pack(row - first, min(count, MAX_COUNT)))
            count -= MAX_COUNT
    return b"".join(entries)
