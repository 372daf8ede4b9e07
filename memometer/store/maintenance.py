"""A SQLite store's file made ready, made small, and found right or wrong."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

from memometer.retrieval import stemmer
from memometer.retrieval import tokenize as ranking_text
from memometer.retrieval.tokenize import terms
from memometer.store.compression import train
from memometer.store.episode import StoreError
from memometer.store.serialization import entries, text_of

if TYPE_CHECKING:
    from memometer.store.sqlite import SQLite

DICTIONARY_EPISODES = 10_000
"""A dictionary is trained on so many texts at most, evenly from all."""

RETRAIN_GROWTH = 8
"""A dictionary is trained again when there are so many times the episodes."""

_BATCH = 1000  # rows rewritten in one transaction, so that other processes get their turn


def write_ahead(file: sqlite3.Connection, *, seconds: float) -> None:
    """Set a file to WAL. While another process does, SQLite says at once that it is locked, whatever its timeout."""
    until = time.monotonic() + seconds
    while True:
        try:
            file.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.01)


def compact(store: SQLite) -> None:
    """Train a dictionary where there is reason to, write texts with it, join the index's parts, give back pages."""
    if store.compression == "zstd":
        _train(store)
        _rewrite(store)
    with store.transaction():
        store.file.execute("INSERT INTO words (words) VALUES ('optimize')")
    with store.alone() as file:
        file.execute("VACUUM")
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _train(store: SQLite) -> None:
    with store.transaction():
        (count,) = store.file.execute("SELECT count(*) FROM episodes").fetchone()
        (known,) = store.file.execute("SELECT max(episodes) FROM dictionaries").fetchone()
        if known is not None and count < RETRAIN_GROWTH * known:
            return
        every = max(1, count // DICTIONARY_EPISODES)
        query = "SELECT kind, payload FROM episodes WHERE row % ? = 0"
        if dictionary := train([store.unpack(*row) for row in store.file.execute(query, (every,)).fetchall()]):
            store.file.execute("INSERT INTO dictionaries (episodes, bytes) VALUES (?, ?)", (count, dictionary))


def _rewrite(store: SQLite) -> None:
    """Write every text with the newest dictionary, and drop those that nothing is written with any more."""
    rows, last = [(0, 0, b"")], 0
    while rows:
        with store.transaction():
            store.load_codec()
            newest = store.codec.newest
            query = "SELECT row, kind, payload FROM episodes WHERE row > ? AND kind != ? ORDER BY row LIMIT ?"
            rows = store.file.execute(query, (last, newest, _BATCH)).fetchall()
            packed = [(*store.codec.pack(store.unpack(kind, payload)), row) for row, kind, payload in rows]
            store.file.executemany("UPDATE episodes SET kind = ?, payload = ? WHERE row = ?", packed)
            last = rows[-1][0] if rows else last
            if not rows:
                unused = "number < ? AND number NOT IN (SELECT kind FROM episodes)"
                store.file.execute(f"DELETE FROM dictionaries WHERE {unused}", (newest,))


def check(store: SQLite) -> list[str]:
    """What is wrong, in sentences: the file itself, then index, counts and lengths against the texts."""
    with store.reading():
        damage = [line for (line,) in store.file.execute("PRAGMA integrity_check") if line != "ok"]
        if damage:
            return [f"{store.path} is damaged: {damage[0]}."]
        store.file.execute("CREATE VIRTUAL TABLE IF NOT EXISTS temp.postings USING fts5vocab(main, words, instance)")
        found: dict[int, set[str]] = {}
        for row, entry in store.file.execute("SELECT doc, term FROM temp.postings"):
            found.setdefault(row, set()).add(entry)
        wrong = []
        sizes: dict[int, list[int]] = {}
        query = "SELECT row, scope, id, archived, length, kind, payload FROM episodes"
        for row, scope, id, archived, length, kind, payload in store.file.execute(query).fetchall():
            try:
                words = terms(text_of(store.unpack(kind, payload)))
            except StoreError as error:
                return [str(error)]
            indexed = found.pop(row, set())
            if indexed != (set() if archived else set(entries(scope, words).split())) or length != len(words):
                wrong.append(f"The index disagrees with the text of {id!r}.")
            size = sizes.setdefault(scope, [0, 0, 0])
            size[0] += not archived
            size[1] += archived
            size[2] += 0 if archived else length
        if found:
            wrong.append(f"The index holds {len(found)} rows that are no episodes.")
        for scope, name, *counted in store.file.execute("SELECT scope, name, live, archived, terms FROM scopes"):
            if counted != sizes.get(scope, [0, 0, 0]):
                wrong.append(f"The counts of scope {name!r} are {counted}, and should be {sizes.get(scope)}.")
        return wrong


def index_again(store: SQLite) -> None:
    """Index every text anew, inside the caller's transaction: terms are taken apart in another way than they were."""
    store.load_codec()
    store.file.execute("INSERT INTO words (words) VALUES ('delete-all')")
    query = "SELECT row, scope, kind, payload FROM episodes WHERE NOT archived"
    for row, scope, kind, payload in store.file.execute(query).fetchall():
        words = terms(text_of(store.unpack(kind, payload)))
        store.file.execute("INSERT INTO words (rowid, terms) VALUES (?, ?)", (row, entries(scope, words)))
        store.file.execute("UPDATE episodes SET length = ? WHERE row = ?", (len(words), row))
    store.file.execute(
        "UPDATE scopes SET rewrites = rewrites + 1, terms = coalesce((SELECT sum(length) FROM episodes "
        "WHERE episodes.scope = scopes.scope AND NOT archived), 0)"
    )
    store.note("terms", terms_version())


def terms_version() -> str:
    """How texts are taken apart into terms: an index made in another way is of no use."""
    sources = [Path(str(module.__file__)).read_bytes() for module in (ranking_text, stemmer)]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]
