"""The file of a SQLite store: schema, transactions, metadata and compressed texts."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memometer.store.compression import Codec
from memometer.store.episode import StoreError

FORMAT = 1
BUSY_SECONDS = 60.0
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE scopes (scope INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, live INTEGER NOT NULL DEFAULT 0,
    archived INTEGER NOT NULL DEFAULT 0, terms INTEGER NOT NULL DEFAULT 0, changes INTEGER NOT NULL DEFAULT 0,
    rewrites INTEGER NOT NULL DEFAULT 0);
CREATE TABLE dictionaries (number INTEGER PRIMARY KEY, episodes INTEGER NOT NULL, bytes BLOB NOT NULL);
CREATE TABLE episodes (row INTEGER PRIMARY KEY, scope INTEGER NOT NULL, id TEXT NOT NULL, at REAL NOT NULL,
    importance REAL, uses INTEGER NOT NULL, archived INTEGER NOT NULL, length INTEGER NOT NULL, codes BLOB,
    sources TEXT, kind INTEGER NOT NULL, payload BLOB NOT NULL, UNIQUE (scope, id));
CREATE VIRTUAL TABLE words USING fts5(terms, content='', detail=none, columnsize=0, tokenize="ascii tokenchars '_~'");
"""


class SQLiteFile:
    """A connection that threads share. It is created with the schema if the file does not exist.

    Args:
        path: path of the file.
        compression: `zstd` or `lz4`, for texts written from now on.
        synchronous: `full` survives a power failure, `normal` a killed process.

    Raises:
        StoreError: the file cannot be opened or is not a store of this format.
    """

    def __init__(self, path: Path, *, compression: str, synchronous: str) -> None:
        self.path = path
        self.compression = compression
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._depth = 0
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.name != ":memory:":
                os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))  # SQLite gives its other files the same mode
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot open store {path} ({error}); name another file.") from error
        try:
            self.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")
            self.execute("PRAGMA page_size = 8192")  # rows of 250 bytes waste less of a larger page
            self._enable_wal()
            self.execute(f"PRAGMA synchronous = {synchronous}")
            self._create_or_check()
            self.load_codec()
        except (sqlite3.Error, StoreError) as error:
            self._connection.close()
            raise StoreError(f"cannot open store {path} ({error}); name another file.") from error

    def _enable_wal(self) -> None:
        """Switch to WAL mode. While another process does so, SQLite reports a lock without waiting."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _create_or_check(self) -> None:
        with self.transaction():
            tables = {name for (name,) in self.execute("SELECT name FROM main.sqlite_master")}
            if not tables:
                for statement in SCHEMA.split(";"):
                    self.execute(statement)
                self.set_meta("format", str(FORMAT))
                self.set_meta("store", uuid.uuid4().hex)
            elif "meta" not in tables or self.meta("format") != str(FORMAT):
                raise StoreError(f"not a store of format {FORMAT}")

    def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        return self._connection.execute(query, values)

    def one(self, query: str, *values: Any) -> Any:
        """Return the first row of a query; None if there is none."""
        return self.execute(query, *values).fetchone()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # ------------------------------------------------------------ transactions

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read from a single snapshot."""
        with self._lock, self._begun("BEGIN"):
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write everything or nothing."""
        with self._lock, self._begun("BEGIN IMMEDIATE"):
            yield

    @contextmanager
    def _begun(self, begin: str) -> Iterator[None]:
        if os.getpid() != self._process:
            raise StoreError("a SQLite store cannot be used in a forked process; open it again there.")
        try:
            if not self._depth:
                self.execute(begin)
            self._depth += 1
            try:
                yield
            except BaseException:  # roll back after any exception, KeyboardInterrupt included
                if self._depth == 1 and self._connection.in_transaction:
                    self.execute("ROLLBACK")
                raise
            else:
                if self._depth == 1:
                    self.execute("COMMIT")
            finally:
                self._depth -= 1
        except sqlite3.Error as error:  # a lock, a full disk, a damaged or closed file
            raise StoreError(f"store {self.path} failed ({error}); nothing was changed.") from error

    @contextmanager
    def outside_transaction(self) -> Iterator[None]:
        """Run statements that no transaction may contain; skip them if another process locks the file for a second."""
        with self._lock:
            self.execute("PRAGMA busy_timeout = 1000")
            try:
                yield
            except sqlite3.OperationalError:
                pass
            finally:
                self.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")

    # ------------------------------------------------------------ metadata and texts

    def meta(self, name: str) -> str | None:
        found = self.one("SELECT value FROM meta WHERE name = ?", name)
        return found[0] if found else None

    def set_meta(self, name: str, value: str) -> None:
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, value)

    def pack(self, payload: bytes) -> tuple[int, bytes]:
        """Compress a payload with the newest dictionary; return the encoding and the bytes."""
        newest = self.one("SELECT max(number) FROM dictionaries")[0]
        if self.compression == "zstd" and newest not in (None, self.codec.newest):
            self.load_codec()  # another process has trained a dictionary
        return self.codec.pack(payload)

    def unpack(self, kind: int, payload: bytes) -> bytes:
        """Decompress a payload. Raises StoreError if it is damaged."""
        try:
            if not self.codec.knows(kind):  # another process has trained a dictionary
                self.load_codec()
            return self.codec.unpack(kind, payload)
        except (KeyError, ValueError) as error:
            raise StoreError(f"cannot read a text in {self.path} ({error}); restore the file from a copy.") from error

    def load_codec(self) -> None:
        """Load all dictionaries."""
        self.codec = Codec(dict(self.execute("SELECT number, bytes FROM dictionaries")), self.compression)
