"""The file of a SQLite store: connections, transactions, metadata and compressed texts."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memometer.store import deadline
from memometer.store.compression import ZSTD, Codec
from memometer.store.episode import StoreError

BUSY_SECONDS = 60.0
MAX_IDLE_READERS = 4
READER_CACHE_KIB = 1024
INSTRUCTIONS_BETWEEN_CHECKS = 20_000  # of SQLite's virtual machine; some milliseconds


class SQLiteFile:
    """One connection for writing, which threads share in turn, and connections for reading, one per reading thread.

    Readers see a snapshot and wait for no writer. Removed bytes are overwritten.

    Args:
        path: path of the file; it is created empty if it does not exist.
        compression: `zstd` or `lz4`, for texts written from now on.
        synchronous: `full` survives a power failure, `normal` a killed process.

    Raises:
        StoreError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, compression: str, synchronous: str) -> None:
        self.path = path
        self.compression = compression
        self.codec = Codec({}, compression)
        self._lock = threading.RLock()  # of the writing connection
        self._thread = threading.local()
        self._process = os.getpid()
        self._idle: list[sqlite3.Connection] = []
        self._idle_lock = threading.Lock()
        self._must_truncate = False
        self._is_closed = False
        self._in_memory = path.name == ":memory:"
        self.is_read_only = False
        try:
            if not self._in_memory:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))  # SQLite gives its other files the same mode
            self._identity = self._identity_now()
            self._writer = self._connect()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot open store {path} ({error}); name another file.") from error
        try:
            self._writer.execute("PRAGMA page_size = 8192")  # rows of 250 bytes waste less of a larger page
            self._enable_wal()
            self._writer.execute(f"PRAGMA synchronous = {synchronous}")
            self._writer.execute("PRAGMA secure_delete = ON")
        except sqlite3.Error as error:
            self._writer.close()
            raise StoreError(f"cannot open store {path} ({error}); name another file.") from error

    def _connect(self, options: str = "") -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?{options}" if not self._in_memory else ":memory:",
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            uri=not self._in_memory,
        )
        connection.set_progress_handler(deadline.passed, INSTRUCTIONS_BETWEEN_CHECKS)
        return connection

    def _enable_wal(self) -> None:
        """Switch to WAL mode, or find out that the file cannot be written.

        While another process switches, SQLite reports a lock without waiting.
        """
        end = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._writer.execute("PRAGMA journal_mode = WAL")
                self._writer.execute("BEGIN IMMEDIATE")
                self._writer.execute("ROLLBACK")
                return
            except sqlite3.OperationalError as error:
                code = error.sqlite_errorcode & 0xFF
                if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                    self._open_read_only()
                    return
                if code != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(0.01)

    def _open_read_only(self) -> None:
        """Open a file that cannot be written: with its log if there is one, else as one that nobody writes."""
        self.is_read_only = True
        for options in ("mode=ro", "immutable=1"):
            self._writer.close()
            self._writer = self._connect(options)
            with contextlib.suppress(sqlite3.OperationalError):
                self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
                return

    def _identity_now(self) -> tuple[int, int] | None:
        """Return the device and inode of the file; None if there is none."""
        if self._in_memory:
            return None
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def _check_identity(self) -> None:
        if self._identity_now() != self._identity:
            raise StoreError(f"store {self.path} was deleted or replaced while it was open; open it again.")

    def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        connection = getattr(self._thread, "connection", None) or self._writer
        return connection.execute(query, values)

    def one(self, query: str, *values: Any) -> Any:
        """Return the first row of a query; None if there is none."""
        return self.execute(query, *values).fetchone()

    def close(self) -> None:
        with self._lock:
            if self._must_truncate:
                self._truncate_wal()
            with self._idle_lock:
                self._is_closed = True
                for reader in self._idle:
                    reader.close()
                self._idle.clear()
            self._writer.close()

    # ------------------------------------------------------------ transactions

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read from a single snapshot. Inside a transaction, read from that."""
        if getattr(self._thread, "connection", None):
            yield
        elif self._in_memory or self.is_read_only:
            with self._writing("BEGIN"):
                yield
        else:
            with self._reading():
                yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write everything or nothing."""
        connection = getattr(self._thread, "connection", None)
        if connection is self._writer:
            yield
        elif connection is not None:
            raise StoreError(f"store {self.path} cannot be written inside a snapshot.")
        else:
            with self._writing("BEGIN IMMEDIATE"):
                yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._errors():
            with self._idle_lock:
                reader = self._idle.pop() if self._idle else None
            reader = reader or self._new_reader()
            try:
                with self._in_transaction(reader, "BEGIN"):
                    yield
            finally:
                with self._idle_lock:
                    is_kept = not (reader.in_transaction or self._is_closed) and len(self._idle) < MAX_IDLE_READERS
                    if is_kept:
                        self._idle.append(reader)
                if not is_kept:
                    reader.close()

    def _new_reader(self) -> sqlite3.Connection:
        if self._is_closed:
            raise StoreError(f"store {self.path} is closed; open it again.")
        reader = self._connect()
        reader.execute("PRAGMA query_only = ON")
        reader.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB}")
        self._check_identity()
        return reader

    @contextmanager
    def _writing(self, begin: str) -> Iterator[None]:
        with self._errors():
            if not self._lock.acquire(timeout=deadline.remaining(BUSY_SECONDS)):
                raise StoreError(f"store {self.path} is busy; try again later. Nothing was changed.")
            try:
                with self._in_transaction(self._writer, begin):
                    yield
                if self._must_truncate:
                    self._truncate_wal()
            finally:
                self._lock.release()

    @contextmanager
    def _in_transaction(self, connection: sqlite3.Connection, begin: str) -> Iterator[None]:
        deadline.check()
        connection.execute(f"PRAGMA busy_timeout = {int(1000 * deadline.remaining(BUSY_SECONDS))}")
        connection.execute(begin)
        self._thread.connection = connection
        try:
            yield
            if begin == "BEGIN IMMEDIATE":
                self._check_identity()
        except BaseException:  # roll back after any exception, KeyboardInterrupt included
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # the first error is reported
                    connection.set_progress_handler(None, 0)
                    connection.execute("ROLLBACK")
                connection.set_progress_handler(deadline.passed, INSTRUCTIONS_BETWEEN_CHECKS)
            raise
        else:
            connection.execute("COMMIT")
        finally:
            self._thread.connection = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        if os.getpid() != self._process:
            raise StoreError("a SQLite store cannot be used in a forked process; open it again there.")
        try:
            yield
        except sqlite3.Error as error:  # a lock, a full disk, a damaged or closed file
            deadline.check()
            raise StoreError(f"store {self.path} failed ({error}); nothing was changed.") from error

    @contextmanager
    def outside_transaction(self) -> Iterator[None]:
        """Run statements that no transaction may contain; skip them if another process locks the file for a second."""
        with self._lock:
            self._writer.execute("PRAGMA busy_timeout = 1000")
            with contextlib.suppress(sqlite3.OperationalError):
                yield

    def copy_to(self, target: Path) -> None:
        """Copy the committed state to another file, while others read and write."""
        with (
            self._errors(),
            contextlib.closing(self._connect()) as source,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log

    # ------------------------------------------------------------ deletion

    def note_deletion(self) -> None:
        """Empty the write-ahead log after this transaction, because it holds the deleted texts, and note for `erase`
        that pages may hold copies.

        While another process reads, the log cannot be emptied; it is then tried again after each further write.
        """
        self._must_truncate = not self._in_memory
        self.set_meta("deleted", "yes")

    def erase(self) -> None:
        """Rewrite the whole file if something was deleted.

        SQLite overwrites deleted rows, but not the copies that it makes of rows when it moves them between pages.
        """
        if self.is_read_only or self._in_memory:
            return
        with self.snapshot():
            if self.meta("deleted") is None:
                return
        with self.transaction():
            self.execute("DELETE FROM meta WHERE name = 'deleted'")  # before, so that a later deletion notes it again
        with self._errors(), self._lock:
            try:
                self._writer.execute("VACUUM")
            except sqlite3.Error:
                self._writer.execute("INSERT OR REPLACE INTO meta VALUES ('deleted', 'yes')")
                raise
            self._truncate_wal()

    def _truncate_wal(self) -> None:
        with contextlib.suppress(sqlite3.OperationalError):
            self._writer.execute("PRAGMA busy_timeout = 2000")
            busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._must_truncate = bool(busy)

    # ------------------------------------------------------------ metadata and texts

    def meta(self, name: str) -> str | None:
        found = self.one("SELECT value FROM meta WHERE name = ?", name)
        return found[0] if found else None

    def set_meta(self, name: str, value: str) -> None:
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", name, value)

    def pack(self, payload: bytes) -> tuple[int, bytes]:
        """Compress a payload with the newest dictionary; return the encoding and the bytes."""
        newest = self.one("SELECT max(number) FROM dictionaries")[0]
        if self.compression == "zstd" and (newest or ZSTD) != self.codec.newest:
            self.load_codec()  # another process has trained or deleted a dictionary
        return self.codec.pack(payload)

    def unpack(self, kind: int, payload: bytes) -> bytes:
        """Decompress a payload. Raises StoreError if it is damaged."""
        codec = self.codec
        try:
            if not codec.knows(kind):  # another process has trained a dictionary
                codec = self.load_codec()
            return codec.unpack(kind, payload)
        except (KeyError, ValueError) as error:
            raise StoreError(f"cannot read a text in {self.path} ({error}); restore the file from a copy.") from error

    def load_codec(self) -> Codec:
        """Load all dictionaries."""
        self.codec = Codec(dict(self.execute("SELECT number, bytes FROM dictionaries")), self.compression)
        return self.codec
