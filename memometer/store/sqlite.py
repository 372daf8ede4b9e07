"""One SQLite file: rows, FTS5 and quantised vectors, written in one transaction. No extension is loaded.

The file is in WAL mode: several processes may read and write it, and a killed one loses nothing that was acknowledged.
FTS5 is an inverted index here: it holds each scope's own terms (`7_kayak`, and `7_kayak~2` where it stands twice), so
that no scope sees another's statistics, without positions, which halves it; BM25 is computed from its postings, as in
every store (FTS5's own bm25() says 0 without positions). Vectors are compared by columns.py.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from memometer.retrieval.tokenize import terms
from memometer.store import maintenance
from memometer.store import url as address
from memometer.store.compression import Codec
from memometer.store.episode import Episode, Size, StoreError, Vectors, same_as, standing_for
from memometer.store.protocol import DEFAULT_BITS, Postings, Store
from memometer.store.scan_cache import Columns, forget_the_oldest, sidecar_of
from memometer.store.serialization import USUAL_IMPORTANCE, entries, episode_of, payload_of, text_of, without_text

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

FIELDS = "id, at, importance, uses, codes, archived, sources, kind, payload"


class SQLite(Store):
    """Episodes in one file.

    Args:
        path: of the file, made where there is none.
        bits: a number of a vector, 2 or 4; of a new store.
        compression: of texts, zstd or lz4; of what is written from now on.
        synchronous: `full` outlives a power cut, `normal` a killed process.

    Raises StoreError for a file that is something else.
    """

    def __init__(
        self, path: Path, *, bits: int = DEFAULT_BITS, compression: str = "zstd", synchronous: str = "full"
    ) -> None:
        if compression not in ("zstd", "lz4") or synchronous not in ("full", "normal") or bits not in (2, 4):
            raise StoreError(
                f"a SQLite store cannot be opened with bits={bits}, compression={compression}, "
                f"synchronous={synchronous}; it takes bits=2 or 4, compression=zstd or lz4, synchronous=full or normal."
            )
        self.path = Path(path)
        self.default_bits = bits
        self.compression = compression
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._depth = 0
        self._columns: OrderedDict[str, Columns] = OrderedDict()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path} cannot be opened as a store ({error}); name another file.") from error
        try:
            self.file.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")
            self.file.execute("PRAGMA page_size = 8192")  # rows of 250 bytes leave less of it empty
            maintenance.write_ahead(self.file, seconds=BUSY_SECONDS)
            self.file.execute(f"PRAGMA synchronous = {synchronous}")
            self._make()
            self.load_codec()
        except (sqlite3.Error, StoreError) as error:
            self.file.close()
            raise StoreError(f"{path} cannot be opened as a store ({error}); name another file.") from error

    def _make(self) -> None:
        with self.transaction():
            tables = {name for (name,) in self.file.execute("SELECT name FROM main.sqlite_master")}
            if not tables:
                for statement in SCHEMA.split(";"):
                    self.file.execute(statement)
                self.note("format", str(FORMAT))
                self.note("store", uuid.uuid4().hex)
                self.note("terms", maintenance.terms_version())
            elif "meta" not in tables or self._noted("format") != str(FORMAT):
                raise StoreError(f"it is no store of format {FORMAT}")
            elif self._noted("terms") != maintenance.terms_version():
                maintenance.index_again(self)
        self._store_id = self._noted("store") or ""

    # ------------------------------------------------------------ what is known of it

    def vectors(self) -> Vectors | None:
        with self.reading():
            noted = self._noted("vectors")
        return Vectors(**json.loads(noted)) if noted else None

    def declare(self, vectors: Vectors) -> None:
        with self.transaction():
            self.note("vectors", json.dumps(asdict(vectors.checked_against(self.vectors()))))

    def scopes(self) -> list[str]:
        with self.reading():
            return [
                name for (name,) in self.file.execute("SELECT name FROM scopes WHERE live + archived ORDER BY name")
            ]

    def size(self, scope: str) -> Size:
        with self.reading():
            query = "SELECT live, archived, terms, changes FROM scopes WHERE name = ?"
            found = self.file.execute(query, (scope,)).fetchone()
        return Size(*found) if found else Size()

    # ------------------------------------------------------------ writing

    def change(
        self,
        scope: str,
        add: Sequence[Episode] = (),
        archive: Sequence[str] = (),
        uses: Mapping[str, int] | None = None,
        merge: Mapping[str, Sequence[str]] | None = None,
    ) -> list[bool]:
        with self.transaction():
            newest = self.file.execute("SELECT max(number) FROM dictionaries").fetchone()[0]
            if self.compression == "zstd" and newest not in (None, self.codec.newest):
                self.load_codec()  # another process has trained one
            self.file.execute("INSERT OR IGNORE INTO scopes (name) VALUES (?)", (scope,))
            (number,) = self.file.execute("SELECT scope FROM scopes WHERE name = ?", (scope,)).fetchone()
            self.file.execute("UPDATE scopes SET changes = changes + 1 WHERE scope = ?", (number,))
            new = [self._add(number, episode) for episode in add]
            for id in archive:
                self._archive(number, id)
            if uses:
                counts = [(count, number, id) for id, count in uses.items()]
                self.file.executemany("UPDATE episodes SET uses = uses + ? WHERE scope = ? AND id = ?", counts)
            for id, others in (merge or {}).items():
                self._merge(number, id, others)
        return new

    def _merge(self, scope: int, id: str, others: Sequence[str]) -> None:
        live = [episode for episode in self._known(scope, [id, *others]) if not episode.archived]
        if len(live) > 1 and live[0].id == id:
            for other in live[1:]:
                self._archive(scope, other.id)
            merged = standing_for(live[0], live[1:])
            self.file.execute(
                "UPDATE episodes SET importance = ?, uses = ?, sources = ? WHERE scope = ? AND id = ?",
                (merged.importance, merged.uses, json.dumps(merged.sources), scope, id),
            )

    def _add(self, scope: int, episode: Episode) -> bool:
        for known in self._known(scope, [episode.id]):
            same_as(known, episode)
            return False
        kind, payload = self.codec.pack(payload_of(episode))
        words = terms(episode.text)
        importance = None if episode.importance == USUAL_IMPORTANCE else episode.importance
        sources = json.dumps(episode.sources) if episode.sources else None
        row = self.file.execute(
            "INSERT INTO episodes (scope, id, at, importance, uses, archived, length, codes, sources, kind, payload) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (scope, episode.id, episode.at, importance, episode.uses, int(episode.archived), len(words),
             episode.codes or None, sources, kind, payload),
        ).lastrowid  # fmt: skip
        if episode.archived:
            self._count(scope, archived=1)
        else:
            self.file.execute("INSERT INTO words (rowid, terms) VALUES (?, ?)", (row, entries(scope, words)))
            self._count(scope, live=1, terms=len(words))
        return True

    def _archive(self, scope: int, id: str) -> None:
        query = "SELECT row, kind, payload FROM episodes WHERE scope = ? AND id = ? AND NOT archived"
        if found := self.file.execute(query, (scope, id)).fetchone():
            row, kind, payload = found
            words = terms(text_of(self.unpack(kind, payload)))
            self.file.execute(
                "INSERT INTO words (words, rowid, terms) VALUES ('delete', ?, ?)", (row, entries(scope, words))
            )
            self.file.execute("UPDATE episodes SET archived = 1 WHERE row = ?", (row,))
            self._count(scope, live=-1, archived=1, terms=-len(words), rewrites=1)

    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        with self.transaction():
            number = self._number(scope)
            if ids is None:
                ids = [id for (id,) in self.file.execute("SELECT id FROM episodes WHERE scope = ?", (number,))]
            known = [episode.id for episode in self._known(number, list(dict.fromkeys(ids)))]
            for id in known:
                self._archive(number, id)  # takes it out of the index
                self.file.execute("DELETE FROM episodes WHERE scope = ? AND id = ?", (number, id))
            self._count(number, archived=-len(known), rewrites=1)
            self.file.execute("UPDATE scopes SET changes = changes + 1 WHERE scope = ?", (number,))
            sidecar_of(self.path, number).unlink(missing_ok=True)
            return len(known)

    def _count(self, scope: int, *, live: int = 0, archived: int = 0, terms: int = 0, rewrites: int = 0) -> None:
        self.file.execute(
            "UPDATE scopes SET live = live + ?, archived = archived + ?, terms = terms + ?, rewrites = rewrites + ? "
            "WHERE scope = ?",
            (live, archived, terms, rewrites, scope),
        )

    # ------------------------------------------------------------ reading

    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        with self.reading():
            return self._known(self._number(scope), ids)

    def _known(self, scope: int, ids: Sequence[str]) -> list[Episode]:
        query = f"SELECT {FIELDS} FROM episodes WHERE scope = ? AND id = ?"
        found = (self.file.execute(query, (scope, id)).fetchone() for id in ids)
        return [self._episode(row) for row in found if row]

    def scan(self, scope: str) -> Iterator[Episode]:
        last = 0
        while True:
            with self.reading():
                query = f"SELECT row, {FIELDS} FROM episodes WHERE +scope = ? AND row > ? ORDER BY row LIMIT 1000"
                found = self.file.execute(query, (self._number(scope), last)).fetchall()
                episodes = [self._episode(row[1:]) for row in found]
            if not found:
                return
            yield from episodes
            last = found[-1][0]

    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        with self.reading():
            number, columns = self._number(scope), self._columns_of(scope)
            found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
            for term in words:
                rows = more = self._holding(f"{number}_{term}")
                counts = np.ones(len(rows))
                while len(more):
                    more = self._holding(f"{number}_{term}~{int(counts.max()) + 1}")
                    counts[np.searchsorted(rows, more)] += 1
                if len(rows):
                    found[term] = (rows, counts, columns.lengths_of(rows))
            return found

    def _holding(self, entry: str) -> np.ndarray:
        """The rows that an index entry stands for, ascending."""
        # As one text, which NumPy takes apart much faster than SQLite hands out rows.
        query = "SELECT group_concat(rowid) FROM words WHERE words MATCH ?"
        (listed,) = self.file.execute(query, (f'"{entry}"',)).fetchone()
        return np.sort(np.fromstring(listed or "", np.int64, sep=","))

    def nearest(self, scope: str, query: np.ndarray, k: int) -> list[int]:
        with self.reading():
            rows, cosines = self._columns_of(scope).cosines(query)
            return self.best(scope, rows, cosines, k)

    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        after, at = ("AND (-at, id) > (?, ?)", (-before[0], before[1])) if before else ("", ())
        query = f"SELECT row FROM episodes WHERE scope = ? AND NOT archived {after} ORDER BY at DESC, id LIMIT ?"
        with self.reading():
            return [row for (row,) in self.file.execute(query, (self._number(scope), *at, k))]

    def around(self, scope: str, rows: Sequence[int], reach: int) -> dict[int, list[int]]:
        with self.reading():
            return self._columns_of(scope).around(rows, reach)

    def rows(self, scope: str, rows: Sequence[int]) -> dict[int, Episode]:
        query = "SELECT id, at, importance, uses, codes FROM episodes WHERE row = ? AND scope = ? AND NOT archived"
        with self.reading():
            number = self._number(scope)
            found = ((row, self.file.execute(query, (row, number)).fetchone()) for row in rows)
            return {row: without_text(*fields) for row, fields in found if fields}

    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        with self.reading():
            return [self.file.execute("SELECT id FROM episodes WHERE row = ?", (r,)).fetchone()[0] for r in rows]

    def close(self) -> None:
        with self._lock:
            self._columns.clear()
            self.file.close()

    def compact(self) -> None:
        """Train a dictionary on what there is, write texts with it, join the index's parts, write vector sidecars."""
        maintenance.compact(self)

    def check(self) -> list[str]:
        return maintenance.check(self)

    # ------------------------------------------------------------ inside

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All that is read in here is of one moment."""
        with self._lock, self._begun("BEGIN"):
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written in here is there afterwards, or nothing is."""
        with self._lock, self._begun("BEGIN IMMEDIATE"):
            yield

    @contextmanager
    def _begun(self, begin: str) -> Iterator[None]:
        if os.getpid() != self._process:
            raise StoreError("a SQLite store cannot be taken along into a forked process; open it there.")
        try:
            if not self._depth:
                self.file.execute(begin)
            self._depth += 1
            try:
                yield
            except BaseException:  # a transaction ends whatever ended its work, Ctrl-C too
                if self._depth == 1 and self.file.in_transaction:
                    self.file.execute("ROLLBACK")
                raise
            else:
                if self._depth == 1:
                    self.file.execute("COMMIT")
            finally:
                self._depth -= 1
        except sqlite3.Error as error:  # locked for a minute, a full disk, a damaged or closed file
            raise StoreError(f"the store {self.path} cannot do this ({error}); nothing was changed.") from error

    @contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """For what cannot be done in a transaction; left undone where another process is in the way for a second."""
        with self._lock:
            self.file.execute("PRAGMA busy_timeout = 1000")
            try:
                yield self.file
            except sqlite3.OperationalError:
                pass
            finally:
                self.file.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")

    def _number(self, scope: str) -> int:
        found = self.file.execute("SELECT scope FROM scopes WHERE name = ?", (scope,)).fetchone()
        return int(found[0]) if found else 0

    def _columns_of(self, scope: str) -> Columns:
        """The scope's columns, as they are now."""
        found = self.file.execute("SELECT scope, rewrites FROM scopes WHERE name = ?", (scope,)).fetchone()
        number, rewrites = found or (0, 0)
        columns = self._columns.get(scope)
        state = (number, rewrites, self.vectors())
        if columns is None or columns.state != state:
            columns = Columns(*state, store=self._store_id, path=self.path)
            self._columns[scope] = columns
        columns.catch_up(self.file)
        self._columns.move_to_end(scope)
        forget_the_oldest(self._columns)
        return columns

    def _episode(self, fields: Sequence[Any]) -> Episode:
        *numbers, kind, payload = fields
        return episode_of(numbers, self.unpack(kind, payload))

    def unpack(self, kind: int, payload: bytes) -> bytes:
        try:
            if not self.codec.knows(kind):  # another process has trained a dictionary
                self.load_codec()
            return self.codec.unpack(kind, payload)
        except (KeyError, ValueError) as error:
            raise StoreError(
                f"a text in {self.path} cannot be read ({error}); restore the file from a copy."
            ) from error

    def load_codec(self) -> None:
        """Take up the dictionaries that are there now."""
        known = dict(self.file.execute("SELECT number, bytes FROM dictionaries"))
        self.codec = Codec(known, self.compression)

    def _noted(self, name: str) -> str | None:
        found = self.file.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return found[0] if found else None

    def note(self, name: str, value: str) -> None:
        self.file.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def from_url(url: str) -> SQLite:
    """`sqlite:///relative.db` or `sqlite:////absolute.db`, with any of the arguments behind a `?`."""
    return SQLite(address.file_of(url), **address.options_of(url))
