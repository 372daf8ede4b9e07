"""Maintenance of a SQLite store: compaction, checks and rebuilding of the index."""

from __future__ import annotations

import hashlib
from pathlib import Path

from memometer.retrieval import stemmer, tokenize
from memometer.retrieval.tokenize import terms
from memometer.store.compression import train
from memometer.store.episode import StoreError
from memometer.store.serialization import from_payload, index_entries
from memometer.store.sqlite_file import SQLiteFile

DICTIONARY_EPISODES = 10_000
"""Limit for the training texts of a dictionary, sampled evenly from all."""

RETRAIN_GROWTH = 8
"""A dictionary is trained again when the number of episodes has grown by this factor."""

_BATCH = 1000  # rows rewritten in one transaction, so that other processes can write in between


def compact(file: SQLiteFile) -> None:
    """Train a dictionary if needed, compress texts with it, merge the index's segments and free unused pages."""
    if file.compression == "zstd":
        _train(file)
        _rewrite(file)
    with file.transaction():
        file.execute("INSERT INTO words (words) VALUES ('optimize')")
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


def _rewrite(file: SQLiteFile) -> None:
    """Compress every text with the newest dictionary and delete unused dictionaries."""
    rows, last = [(0, 0, b"")], 0
    while rows:
        with file.transaction():
            file.load_codec()
            newest = file.codec.newest
            query = "SELECT row, kind, payload FROM episodes WHERE row > ? AND kind != ? ORDER BY row LIMIT ?"
            rows = file.execute(query, last, newest, _BATCH).fetchall()
            for row, kind, payload in rows:
                packed = file.codec.pack(file.unpack(kind, payload))
                file.execute("UPDATE episodes SET kind = ?, payload = ? WHERE row = ?", *packed, row)
            last = rows[-1][0] if rows else last
            if not rows:
                unused = "number < ? AND number NOT IN (SELECT kind FROM episodes)"
                file.execute(f"DELETE FROM dictionaries WHERE {unused}", newest)


def check(file: SQLiteFile) -> list[str]:
    """Return the problems of the file itself, then those of index, counts and lengths against the texts."""
    with file.snapshot():
        damage = [line for (line,) in file.execute("PRAGMA integrity_check") if line != "ok"]
        if damage:
            return [f"{file.path} is damaged: {damage[0]}."]
        file.execute("CREATE VIRTUAL TABLE IF NOT EXISTS temp.postings USING fts5vocab(main, words, instance)")
        indexed: dict[int, set[str]] = {}
        for row, entry in file.execute("SELECT doc, term FROM temp.postings"):
            indexed.setdefault(row, set()).add(entry)
        problems = []
        sizes: dict[int, list[int]] = {}
        query = "SELECT row, scope, id, archived, length, kind, payload FROM episodes"
        for row, scope, id, archived, length, kind, payload in file.execute(query).fetchall():
            try:
                words = terms(from_payload(file.unpack(kind, payload))[0])
            except StoreError as error:
                return [str(error)]
            expected = set() if archived else set(index_entries(scope, words).split())
            if indexed.pop(row, set()) != expected or length != len(words):
                problems.append(f"The index does not match the text of {id!r}.")
            size = sizes.setdefault(scope, [0, 0, 0])
            size[0] += not archived
            size[1] += archived
            size[2] += 0 if archived else length
        if indexed:
            problems.append(f"The index holds {len(indexed)} rows without an episode.")
        for scope, name, *counts in file.execute("SELECT scope, name, live, archived, terms FROM scopes"):
            if counts != sizes.get(scope, [0, 0, 0]):
                problems.append(f"The counts of scope {name!r} are {counts} instead of {sizes.get(scope)}.")
        return problems


def update_index(file: SQLiteFile) -> None:
    """Rebuild the index of a store that was written with another version of the tokenizer."""
    version = _tokenizer_version()
    with file.transaction():
        if file.meta("terms") == version:
            return
        file.load_codec()
        file.execute("INSERT INTO words (words) VALUES ('delete-all')")
        query = "SELECT row, scope, kind, payload FROM episodes WHERE NOT archived"
        for row, scope, kind, payload in file.execute(query).fetchall():
            words = terms(from_payload(file.unpack(kind, payload))[0])
            file.execute("INSERT INTO words (rowid, terms) VALUES (?, ?)", row, index_entries(scope, words))
            file.execute("UPDATE episodes SET length = ? WHERE row = ?", len(words), row)
        file.execute(
            "UPDATE scopes SET rewrites = rewrites + 1, terms = coalesce((SELECT sum(length) FROM episodes "
            "WHERE episodes.scope = scopes.scope AND NOT archived), 0)"
        )
        file.set_meta("terms", version)


def _tokenizer_version() -> str:
    """Return a digest of the modules that split texts into terms."""
    sources = [Path(str(module.__file__)).read_bytes() for module in (tokenize, stemmer)]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]
