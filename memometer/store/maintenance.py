"""Maintenance of a SQLite store: compaction, checks and rebuilding of the index."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memometer.retrieval import stemmer, tokenize
from memometer.retrieval.tokenize import terms
from memometer.store import deadline, inverted_index
from memometer.store.compression import train
from memometer.store.episode import StoreError
from memometer.store.serialization import from_payload
from memometer.store.sqlite_file import SQLiteFile
from memometer.store.sqlite_schema import checksum

DICTIONARY_EPISODES = 10_000
"""Limit for the training texts of a dictionary, sampled evenly from all."""

RETRAIN_GROWTH = 8
"""A dictionary is trained again when the number of episodes has grown by this factor."""

_BATCH = 1000  # rows rewritten in one transaction, so that other processes can write in between


def compact(file: SQLiteFile) -> None:
    """Train a dictionary if needed, compress texts with it, and free unused pages."""
    if file.compression == "zstd":
        _train(file)
        _rewrite(file)
    with file.outside_transaction():
        file.execute("VACUUM")
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _train(file: SQLiteFile) -> None:
    with file.transaction():
        (count,) = file.one("SELECT count(*) FROM episodes")
        (trained_on,) = file.one("SELECT max(episodes) FROM dictionaries")
        if trained_on is not None and count < RETRAIN_GROWTH * trained_on:
            return
        every = max(1, count // DICTIONARY_EPISODES)
        sample = file.execute("SELECT kind, payload FROM episodes WHERE row % ? = 0", every).fetchall()
        if dictionary := train([file.unpack(*row) for row in sample]):
            file.execute("INSERT INTO dictionaries (episodes, bytes) VALUES (?, ?)", count, dictionary)


def forget_dictionaries(file: SQLiteFile, payload: bytes) -> None:
    """Delete all dictionaries if one contains a part of a deleted payload, because they are made of texts.

    The texts are compressed again without a dictionary, in the caller's transaction.
    """
    file.load_codec()
    if file.codec.contains_part_of(payload):
        rows = file.execute("SELECT row FROM episodes WHERE kind > 0").fetchall()
        without = type(file.codec)({}, file.compression)
        for (row,) in rows:
            id, at, codes, kind, packed = file.one(
                "SELECT id, at, codes, kind, payload FROM episodes WHERE row = ?", row
            )
            kind, packed = without.pack(file.unpack(kind, packed))
            _put_payload(file, row, id, at, codes, kind, packed)
        file.execute("DELETE FROM dictionaries")
        file.load_codec()


def _rewrite(file: SQLiteFile) -> None:
    """Compress every text with the newest dictionary and delete unused dictionaries."""
    rows: list[Any] = [()]
    last = 0
    while rows:
        with file.transaction():
            file.load_codec()
            newest = file.codec.newest
            columns = "row, id, at, codes, kind, payload"
            query = f"SELECT {columns} FROM episodes WHERE row > ? AND kind != ? ORDER BY row LIMIT ?"
            rows = file.execute(query, last, newest, _BATCH).fetchall()
            for row, id, at, codes, kind, payload in rows:
                _put_payload(file, row, id, at, codes, *file.codec.pack(file.unpack(kind, payload)))
            last = rows[-1][0] if rows else last
            if not rows:
                unused = "number < ? AND number NOT IN (SELECT kind FROM episodes)"
                file.execute(f"DELETE FROM dictionaries WHERE {unused}", newest)


def _put_payload(
    file: SQLiteFile, row: int, id: str, at: float, codes: bytes | None, kind: int, payload: bytes
) -> None:
    total = checksum(id, at, codes, kind, payload)
    file.execute("UPDATE episodes SET kind = ?, payload = ?, checksum = ? WHERE row = ?", kind, payload, total, row)


def check(file: SQLiteFile) -> list[str]:
    """Return the problems of the file itself, then those of texts, index, counts and lengths."""
    with file.snapshot():
        damage = [line for (line,) in file.execute("PRAGMA integrity_check") if line != "ok"]
        if damage:
            return [f"{file.path} is damaged: {damage[0]}."]
        problems: list[str] = []
        indexed = _indexed(file)
        sizes: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
        for row, scope, id, archived, length, words in _terms_of_rows(file, problems):
            expected = Counter() if archived else Counter(words)
            if indexed.pop((scope, row), Counter()) != expected or length != len(words):
                problems.append(f"The index does not match the text of {id!r}.")
            size = sizes[scope]
            size[0] += not archived
            size[1] += archived
            size[2] += 0 if archived else length
        if problems:
            return problems  # rows with damaged texts are missing from the counts
        if indexed:
            problems.append(f"The index holds {len(indexed)} rows without an episode.")
        for scope, name, *counts in file.execute("SELECT scope, name, live, archived, terms FROM scopes"):
            if counts != sizes[scope]:
                problems.append(f"The counts of scope {name!r} are {counts} instead of {sizes[scope]}.")
        return problems


def _indexed(file: SQLiteFile) -> dict[tuple[int, int], Counter[str]]:
    """Return the terms of each row, by scope and row, as the index holds them."""
    indexed: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for scope, term in file.execute("SELECT DISTINCT scope, term FROM postings").fetchall():
        rows, counts = inverted_index.rows_with(file, scope, term)
        for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
            indexed[scope, row][term] = int(count)
    return dict(indexed)


def _terms_of_rows(file: SQLiteFile, problems: list[str]) -> Iterator[tuple[int, int, str, int, int, list[str]]]:
    """Yield row, scope, id, archived, length and terms of each row, and add the rows that are damaged to `problems`."""
    query = "SELECT row, scope, id, archived, length, checksum, at, codes, kind, payload FROM episodes"
    for row, scope, id, archived, length, expected, at, codes, kind, payload in file.execute(query).fetchall():
        try:
            if checksum(id, at, codes, kind, payload) != expected:
                raise StoreError("its checksum is wrong; restore the file from a copy")
            words = terms(from_payload(file.unpack(kind, payload))[0])
        except (StoreError, ValueError, TypeError) as error:
            problems.append(f"The row of {id!r} cannot be read ({str(error).rstrip('.')}).")
            continue
        yield row, scope, id, archived, length, words


def update_index(file: SQLiteFile) -> None:
    """Rebuild the index of a store that was written with another version of the tokenizer."""
    version = _tokenizer_version()
    if file.meta("terms") == version or file.is_read_only:
        return
    with file.transaction():
        if file.meta("terms") == version:
            return
        file.load_codec()
        file.execute("DELETE FROM postings")
        for (scope,) in file.execute("SELECT scope FROM scopes").fetchall():
            _index_scope(file, scope)
        file.execute(
            "UPDATE scopes SET rewrites = rewrites + 1, terms = coalesce((SELECT sum(length) FROM episodes "
            "WHERE episodes.scope = scopes.scope AND NOT archived), 0)"
        )
        file.set_meta("terms", version)


def _index_scope(file: SQLiteFile, scope: int) -> None:
    last = -(2**63)
    query = "SELECT row, kind, payload FROM episodes WHERE scope = ? AND row > ? AND NOT archived ORDER BY row LIMIT ?"
    while rows := file.execute(query, scope, last, _BATCH).fetchall():
        occurrences: dict[str, inverted_index.Places] = defaultdict(list)
        for row, kind, payload in rows:
            words = terms(from_payload(file.unpack(kind, payload))[0])
            for term, count in Counter(words).items():
                occurrences[term].append((row, count))
            file.execute("UPDATE episodes SET length = ? WHERE row = ?", len(words), row)
        inverted_index.add(file, scope, occurrences)
        last = rows[-1][0]
        deadline.check()


def _tokenizer_version() -> str:
    """Return a digest of the modules that split texts into terms."""
    sources = [Path(str(module.__file__)).read_bytes() for module in (tokenize, stemmer)]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]
