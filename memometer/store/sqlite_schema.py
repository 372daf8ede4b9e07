"""The schema of a SQLite store: creation, and upgrades of stores that earlier versions wrote."""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from memometer.store.episode import StoreError, change_mark
from memometer.store.sqlite_file import SQLiteFile

FORMAT = 2
"""Version of the schema. 1: a full-text index of SQLite, no checksums. 2: an index of our own, checksums of rows."""

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE scopes (scope INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, live INTEGER NOT NULL DEFAULT 0,
    archived INTEGER NOT NULL DEFAULT 0, terms INTEGER NOT NULL DEFAULT 0, changes INTEGER NOT NULL DEFAULT 0,
    rewrites INTEGER NOT NULL DEFAULT 0);
CREATE TABLE dictionaries (number INTEGER PRIMARY KEY AUTOINCREMENT, episodes INTEGER NOT NULL, bytes BLOB NOT NULL);
CREATE TABLE episodes (row INTEGER PRIMARY KEY, scope INTEGER NOT NULL, id TEXT NOT NULL, at REAL NOT NULL,
    importance REAL, uses INTEGER NOT NULL, archived INTEGER NOT NULL, length INTEGER NOT NULL, codes BLOB,
    sources TEXT, kind INTEGER NOT NULL, payload BLOB NOT NULL, checksum INTEGER NOT NULL, UNIQUE (scope, id));
CREATE TABLE postings (scope INTEGER, term TEXT, first INTEGER, entries BLOB NOT NULL,
    PRIMARY KEY (scope, term, first)) WITHOUT ROWID;
"""


def prepare(file: SQLiteFile) -> None:
    """Create the schema in an empty file, or upgrade that of an earlier version, in one transaction.

    Before an upgrade, the file is copied to `NAME.format-1`, next to it.

    Raises:
        StoreError: the file is not a store, or a newer version has written it.
    """
    with file.snapshot():
        if _format(file) == FORMAT:
            return
    with file.transaction():
        version = _format(file)  # another process may have been faster
        if version == 0:
            _create(file)
        elif version < FORMAT:
            _copy(file, file.path.with_name(f"{file.path.name}.format-{version}"))
            for upgrade in UPGRADES[version - 1 :]:
                upgrade(file)
            file.set_meta("format", str(FORMAT))
            file.note_deletion()


def _format(file: SQLiteFile) -> int:
    """Return the version of the schema, 0 for an empty file."""
    tables = {name for (name,) in file.execute("SELECT name FROM main.sqlite_master")}
    if not tables:
        return 0
    version = file.meta("format") if "meta" in tables else None
    if version is None or not version.isdecimal():
        raise StoreError("it is not a memometer store")
    if int(version) > FORMAT:
        raise StoreError(f"a newer version of memometer wrote it, in format {version}; upgrade memometer")
    return int(version)


def _create(file: SQLiteFile) -> None:
    for statement in SCHEMA.split(";"):
        file.execute(statement)
    file.set_meta("format", str(FORMAT))
    file.set_meta("store", uuid.uuid4().hex)


def _copy(file: SQLiteFile, target: Path) -> None:
    """Copy the committed state of the file; the caller's transaction keeps other writers out."""
    scratch = target.with_name(f"{target.name}.{os.getpid()}")
    os.close(os.open(scratch, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
    try:
        file.copy_to(scratch)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def _to_format_2(file: SQLiteFile) -> None:
    """Replace the full-text index, and add checksums. The caller rebuilds the index; see maintenance.py."""
    known = {column for _, column, *_ in file.execute("PRAGMA table_info(scopes)")}
    for column in {"changes", "rewrites"} - known:  # the first stores of format 1 had no change marks
        file.execute(f"ALTER TABLE scopes ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0")
    for (scope,) in file.execute("SELECT scope FROM scopes").fetchall():
        file.execute("UPDATE scopes SET changes = ? WHERE scope = ?", change_mark(), scope)
    dictionaries = file.execute("SELECT number, episodes, bytes FROM dictionaries").fetchall()
    statements = dict(enumerate(SCHEMA.split(";")))
    file.execute("DROP TABLE words")
    file.execute("DROP TABLE dictionaries")
    for statement in statements.values():
        if "TABLE dictionaries" in statement or "TABLE postings" in statement:
            file.execute(statement)
    for row in dictionaries:
        file.execute("INSERT INTO dictionaries VALUES (?, ?, ?)", *row)
    file.execute("ALTER TABLE episodes ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0")
    file.execute("DELETE FROM meta WHERE name = 'terms'")  # so that the index is rebuilt
    if file.meta("store") is None:
        file.set_meta("store", uuid.uuid4().hex)
    last = -(2**63)
    query = "SELECT row, id, at, codes, kind, payload FROM episodes WHERE row > ? ORDER BY row LIMIT 1000"
    while rows := file.execute(query, last).fetchall():
        for row, *columns in rows:
            file.execute("UPDATE episodes SET checksum = ? WHERE row = ?", checksum(*columns), row)
        last = rows[-1][0]


UPGRADES: Sequence[Callable[[SQLiteFile], None]] = (_to_format_2,)
"""The steps from each format to the next."""


def checksum(id: str, at: float, codes: bytes | None, kind: int, payload: bytes) -> int:
    """Return the checksum of a row's columns that never change."""
    text = f"{id}\0{at!r}\0{kind}\0".encode(errors="surrogatepass")
    return zlib.crc32(payload, zlib.crc32(codes or b"", zlib.crc32(text)))
