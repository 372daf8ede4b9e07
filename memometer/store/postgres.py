"""A store in PostgreSQL with pgvector, for many writers on many machines.

Text, terms and vectors are written in one transaction. Vectors are integers in half precision and are compared exactly;
with `hnsw=yes` an approximate index selects the candidates.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np

from memometer.retrieval.tokenize import terms
from memometer.store import deadline
from memometer.store.episode import (
    Columns,
    Episode,
    ScopeSize,
    StoreError,
    VectorFormat,
    change_mark,
    check_same,
    merged,
)
from memometer.store.protocol import DEFAULT_BITS, Change, Postings, Store

FORMAT = 1

SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE IF NOT EXISTS memory_meta (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE IF NOT EXISTS memory_scopes (scope bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text UNIQUE NOT NULL, live bigint NOT NULL DEFAULT 0, archived bigint NOT NULL DEFAULT 0,
    terms bigint NOT NULL DEFAULT 0, changes bigint NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS memory_episodes (row bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope bigint NOT NULL REFERENCES memory_scopes, id text NOT NULL, text text NOT NULL, at float8 NOT NULL,
    importance float8 NOT NULL, uses bigint NOT NULL, archived boolean NOT NULL, sources text[] NOT NULL,
    details json NOT NULL, terms text[] NOT NULL, codes bytea NOT NULL, levels halfvec, UNIQUE (scope, id));
CREATE INDEX IF NOT EXISTS memory_order ON memory_episodes (scope, row) WHERE NOT archived;
CREATE INDEX IF NOT EXISTS memory_terms ON memory_episodes USING gin (terms) WHERE NOT archived;
"""

COLUMNS = "id, text, at, importance, uses, codes, sources, archived, details"
BUSY_SECONDS = 60.0
MAX_CONNECTIONS = 16
"""Connections of a process. Each thread has its own during a transaction, so that readers wait for no writer."""

SPARE = 50
"""Number of additional rows to fetch and compare again, because the server's cosines differ in the last bits."""


class Postgres(Store):
    """Episodes in the tables `memory_…` of a database, which are created if they do not exist.

    Args:
        url: connection URI for libpq.
        bits: bits per dimension of a new store's vectors, 2 or 4.
        hnsw: select the vector candidates with an approximate index.

    Raises:
        StoreError: the server does not answer or does not have pgvector.
    """

    def __init__(self, url: str, *, bits: int = DEFAULT_BITS, hnsw: bool = False) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise StoreError("a postgresql: store needs psycopg; run pip install 'psycopg[binary]'.") from error
        self._psycopg = psycopg
        self._url = url
        self.default_bits = bits
        self._hnsw = hnsw
        self._thread = threading.local()
        self._idle: list[Any] = []
        self._lock = threading.Lock()  # of the idle connections
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._must_vacuum = False
        with self.transaction():
            self._query("SELECT pg_advisory_xact_lock(7011)")  # two processes must not create the tables at once
            self._query(SCHEMA)
            self._query("INSERT INTO memory_meta VALUES ('format', %s) ON CONFLICT DO NOTHING", str(FORMAT))
            if self._one("SELECT value FROM memory_meta WHERE name = 'format'") != (str(FORMAT),):
                raise StoreError(f"the database is not a store of format {FORMAT}; name another database.")
            self._query("INSERT INTO memory_meta VALUES ('store', %s) ON CONFLICT DO NOTHING", uuid.uuid4().hex)
            self.identity = str(self._one("SELECT value FROM memory_meta WHERE name = 'store'")[0])

    # ------------------------------------------------------------ metadata

    def vector_format(self) -> VectorFormat | None:
        with self.snapshot():
            found = self._one("SELECT value FROM memory_meta WHERE name = 'vectors'")
        return VectorFormat(**json.loads(found[0])) if found else None

    def set_vector_format(self, vectors: VectorFormat) -> None:
        with self.transaction():
            self._query("LOCK TABLE memory_meta")
            vectors.check_compatible(self.vector_format())
            value = json.dumps(asdict(vectors))
            self._query("INSERT INTO memory_meta VALUES ('vectors', %s) ON CONFLICT DO NOTHING", value)
            if self._hnsw:
                self._query(
                    "CREATE INDEX IF NOT EXISTS memory_hnsw ON memory_episodes "
                    f"USING hnsw ((levels::halfvec({vectors.dimensions})) halfvec_cosine_ops) WHERE NOT archived"
                )

    def scopes(self) -> list[str]:
        with self.snapshot():
            return sorted(name for (name,) in self._query("SELECT name FROM memory_scopes WHERE live + archived > 0"))

    def size(self, scope: str) -> ScopeSize:
        with self.snapshot():
            found = self._one("SELECT live, archived, terms, changes FROM memory_scopes WHERE name = %s", scope)
        return ScopeSize(*found) if found else ScopeSize()

    # ------------------------------------------------------------ writing

    def apply(self, scope: str, change: Change) -> list[bool]:
        kind = self.vector_format()
        with self.transaction():
            self._query("INSERT INTO memory_scopes (name) VALUES (%s) ON CONFLICT DO NOTHING", scope)
            # One writer per scope at a time, so that row numbers follow the order of commits.
            (number,) = self._one("SELECT scope FROM memory_scopes WHERE name = %s FOR UPDATE", scope)
            self._query("UPDATE memory_scopes SET changes = %s WHERE scope = %s", change_mark(), number)
            new = [self._add(number, episode, kind) for episode in change.add]
            self._archive(number, change.archive)
            self._restore(number, change.restore)
            for id, count in change.uses.items():
                query = "UPDATE memory_episodes SET uses = uses + %s WHERE scope = %s AND id = %s"
                self._query(query, count, number, id)
            for id, others in change.merge.items():
                self._merge(number, id, others)
        return new

    def _add(self, scope: int, episode: Episode, kind: VectorFormat | None) -> bool:
        if "\0" in episode.text + episode.id:
            raise StoreError(
                f"episode {episode.id!r} contains a NUL character, which PostgreSQL cannot store; remove it."
            )
        for known in self._get(scope, [episode.id]):
            check_same(known, episode)
            if known.archived and not episode.archived:
                self._restore(scope, [episode.id])
            return False
        words = [f"{scope}_{word}" for word in terms(episode.text)]
        levels = None
        if kind and episode.codes:
            levels = _vector_literal(kind.quantiser.levels(kind.quantiser.matrix([episode.codes]))[0])
        self._query(
            f"INSERT INTO memory_episodes (scope, {COLUMNS}, terms, levels) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::halfvec)",
            scope,
            episode.id,
            episode.text,
            episode.at,
            episode.importance,
            episode.uses,
            episode.codes,
            list(episode.sources),
            episode.archived,
            json.dumps(dict(episode.details)),
            words,
            levels,
        )
        live = not episode.archived
        self._count(scope, live=int(live), archived=int(not live), terms=len(words) if live else 0)
        return True

    def _archive(self, scope: int, ids: Sequence[str]) -> None:
        gone = self._query(
            "UPDATE memory_episodes SET archived = true WHERE scope = %s AND id = ANY(%s) AND NOT archived "
            "RETURNING cardinality(terms)",
            scope,
            list(ids),
        )
        self._count(scope, live=-len(gone), archived=len(gone), terms=-sum(length for (length,) in gone))

    def _restore(self, scope: int, ids: Sequence[str]) -> None:
        back = self._query(
            "UPDATE memory_episodes SET archived = false WHERE scope = %s AND id = ANY(%s) AND archived "
            "RETURNING cardinality(terms)",
            scope,
            list(ids),
        )
        self._count(scope, live=len(back), archived=-len(back), terms=sum(length for (length,) in back))

    def _merge(self, scope: int, id: str, others: Sequence[str]) -> None:
        live = [episode for episode in self._get(scope, [id, *others]) if not episode.archived]
        if len(live) > 1 and live[0].id == id:
            self._archive(scope, [other.id for other in live[1:]])
            whole = merged(live[0], live[1:])
            self._query(
                "UPDATE memory_episodes SET importance = %s, uses = %s, sources = %s WHERE scope = %s AND id = %s",
                whole.importance,
                whole.uses,
                list(whole.sources),
                scope,
                id,
            )

    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        with self.transaction():
            found = self._one("SELECT scope FROM memory_scopes WHERE name = %s FOR UPDATE", scope)
            if found is None:
                return 0
            deleted = self._query(
                "DELETE FROM memory_episodes WHERE scope = %s AND (%s OR id = ANY(%s)) "
                "RETURNING archived, cardinality(terms)",
                found[0],
                ids is None,
                list(ids or ()),
            )
            self._must_vacuum |= bool(deleted)
            live = [length for archived, length in deleted if not archived]
            self._count(found[0], live=-len(live), archived=len(live) - len(deleted), terms=-sum(live))
            self._query("UPDATE memory_scopes SET changes = %s WHERE scope = %s", change_mark(), found[0])
            return len(deleted)

    def _count(self, scope: int, *, live: int, archived: int, terms: int) -> None:
        self._query(
            "UPDATE memory_scopes SET live = live + %s, archived = archived + %s, terms = terms + %s WHERE scope = %s",
            live,
            archived,
            terms,
            scope,
        )

    # ------------------------------------------------------------ reading

    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        with self.snapshot():
            return self._get(self._number(scope), ids)

    def _get(self, scope: int, ids: Sequence[str]) -> list[Episode]:
        query = f"SELECT {COLUMNS} FROM memory_episodes WHERE scope = %s AND id = ANY(%s)"
        found = {fields[0]: _episode(*fields) for fields in self._query(query, scope, list(ids))}
        return [found[id] for id in ids if id in found]

    def scan(self, scope: str) -> Iterator[Episode]:
        last = 0
        query = f"SELECT row, {COLUMNS} FROM memory_episodes WHERE scope = %s AND row > %s ORDER BY row LIMIT 1000"
        while True:
            with self.snapshot():
                found = self._query(query, self._number(scope), last)
            if not found:
                return
            for _, *fields in found:
                yield _episode(*fields)
            last = found[-1][0]

    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        with self.snapshot():
            number = self._number(scope)
            wanted = [f"{number}_{word}" for word in words]
            rows = self._query(
                "SELECT row, cardinality(terms), ARRAY(SELECT t FROM unnest(terms) t WHERE t = ANY(%s)) "
                "FROM memory_episodes WHERE scope = %s AND NOT archived AND terms && %s ORDER BY row",
                wanted,
                number,
                wanted,
            )
        found: dict[str, list[tuple[int, int, int]]] = {}
        for row, length, holding in rows:
            for word, count in Counter(holding).items():
                found.setdefault(word.partition("_")[2], []).append((row, count, length))
        return {
            word: (np.array(rows, np.int64), np.array(counts, float), np.array(lengths, float))
            for word, (rows, counts, lengths) in ((word, zip(*hits, strict=True)) for word, hits in found.items())
        }

    def nearest(self, scope: str, query: np.ndarray, k: int) -> list[int]:
        kind = self.vector_format()
        if kind is None:
            return []
        # Ties are broken by the smaller id, but the approximate index cannot sort by id.
        levels, ties = (f"levels::halfvec({kind.dimensions})", "") if self._hnsw else ("levels", ', id COLLATE "C"')
        with self.snapshot():
            if self._hnsw:
                self._query("SET LOCAL hnsw.iterative_scan = strict_order")
            rows = self._query(
                "SELECT row, codes FROM memory_episodes WHERE scope = %s AND NOT archived AND levels IS NOT NULL "
                f"ORDER BY {levels} <=> %s::halfvec({kind.dimensions}){ties} LIMIT %s",
                self._number(scope),
                _vector_literal(query),
                k + SPARE,
            )
            if not rows:
                return []
            codes = kind.quantiser.matrix([codes for _, codes in rows])
            cosines = kind.quantiser.cosines(codes, kind.quantiser.norms(codes), query)
            return self.top_rows(scope, np.array([row for row, _ in rows]), cosines, k)

    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        after, at = ('AND (-at, id COLLATE "C") > (%s, %s)', (-before[0], before[1])) if before else ("", ())
        order = 'ORDER BY at DESC, id COLLATE "C" LIMIT %s'
        query = f"SELECT row FROM memory_episodes WHERE scope = %s AND NOT archived {after} {order}"
        with self.snapshot():
            return [row for (row,) in self._query(query, self._number(scope), *at, k)]

    def neighbours(self, scope: str, rows: np.ndarray, distance: int) -> np.ndarray:
        side = (
            "ARRAY(SELECT row FROM memory_episodes e WHERE scope = %s AND NOT archived AND e.row {} r.row "
            "ORDER BY e.row {} LIMIT %s)"
        )
        query = f"SELECT r.row, {side.format('<', 'DESC')}, {side.format('>', 'ASC')} FROM unnest(%s::bigint[]) r(row)"
        with self.snapshot():
            number = self._number(scope)
            found = self._query(query, number, distance, number, distance, rows.tolist())
        around = {
            row: [*(distance - len(before)) * [-1], *reversed(before), row, *after, *(distance - len(after)) * [-1]]
            for row, before, after in found
        }
        return np.array([around[row] for row in rows.tolist()], np.int64).reshape(-1, 2 * distance + 1)

    def columns(self, scope: str, rows: np.ndarray, query: np.ndarray | None, *, uses: bool = False) -> Columns:
        kind = self.vector_format()
        columns = "row, at, importance, uses, codes"
        with self.snapshot():
            found = self._query(
                f"SELECT {columns} FROM memory_episodes WHERE row = ANY(%s) ORDER BY row", rows.tolist()
            )
        episodes = [Episode("", "", at, weight, uses, bytes(codes)) for _, at, weight, uses, codes in found]
        return Columns.of([row for row, *_ in found], episodes, kind, query)

    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        with self.snapshot():
            found = dict(self._query("SELECT row, id FROM memory_episodes WHERE row = ANY(%s)", list(rows)))
        return [found[row] for row in rows]

    def check(self) -> list[str]:
        with self.snapshot():
            problems = []
            sizes: dict[int, list[int]] = {}
            query = f"SELECT scope, terms, {COLUMNS} FROM memory_episodes"
            for scope, indexed, *fields in self._query(query):
                episode = _episode(*fields)
                if indexed != [f"{scope}_{word}" for word in terms(episode.text)]:
                    problems.append(f"The index does not match the text of {episode.id!r}.")
                size = sizes.setdefault(scope, [0, 0, 0])
                size[0] += not episode.archived
                size[1] += episode.archived
                size[2] += 0 if episode.archived else len(indexed)
            for scope, name, *counts in self._query("SELECT scope, name, live, archived, terms FROM memory_scopes"):
                if counts != sizes.get(scope, [0, 0, 0]):
                    problems.append(f"The counts of scope {name!r} are {counts} instead of {sizes.get(scope)}.")
        return problems

    def erase(self) -> None:
        if self._must_vacuum:
            with self._connected() as connection:
                connection.execute("VACUUM memory_episodes")
            self._must_vacuum = False

    def close(self) -> None:
        self._close_idle()

    def _close_idle(self) -> None:
        with self._lock:
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    # ------------------------------------------------------------ private

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with self._begun("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._begun("BEGIN"):
            yield

    @contextmanager
    def _begun(self, begin: str) -> Iterator[None]:
        """Open a transaction on a connection of this thread's own, unless the thread has one open."""
        if getattr(self._thread, "connection", None):
            yield
            return
        with self._connected() as connection:
            self._thread.connection = connection
            try:
                with self._committed(connection, begin):
                    yield
            finally:
                self._thread.connection = None

    @contextmanager
    def _committed(self, connection: Any, begin: str) -> Iterator[None]:
        deadline.check()
        connection.execute(begin)
        milliseconds = max(1, int(1000 * deadline.remaining(BUSY_SECONDS))) if deadline.is_set() else 0
        connection.execute(f"SET LOCAL statement_timeout = {milliseconds}")
        try:
            yield
        except BaseException:  # roll back after any exception, KeyboardInterrupt included
            if not connection.closed:
                connection.execute("ROLLBACK")
            raise
        else:
            connection.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        if not self._free.acquire(timeout=deadline.remaining(BUSY_SECONDS)):
            raise StoreError("the PostgreSQL store is busy; try again later. Nothing was changed.")
        try:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            connection = connection or self._psycopg.connect(self._url, autocommit=True)
            try:
                yield connection
            finally:
                if not connection.closed:
                    with self._lock:
                        self._idle.append(connection)
        except self._psycopg.Error as error:
            self._close_idle()  # other idle connections may be broken as well
            deadline.check()
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StoreError(f"the PostgreSQL store failed ({first_line}); check that the server runs.") from error
        finally:
            self._free.release()

    def _query(self, query: str, *values: Any) -> list[Any]:
        cursor = self._thread.connection.execute(query, values or None)
        found: list[Any] = cursor.fetchall() if cursor.description else []
        return found

    def _one(self, query: str, *values: Any) -> Any:
        found = self._query(query, *values)
        return found[0] if found else None

    def _number(self, scope: str) -> int:
        found = self._one("SELECT scope FROM memory_scopes WHERE name = %s", scope)
        return int(found[0]) if found else 0


def from_url(url: str) -> Postgres:
    """Open a libpq URI; the options `bits` and `hnsw=yes` may follow the `?` with those of libpq."""
    address = urlsplit(url)
    options = dict(parse_qsl(address.query))
    bits, hnsw = options.pop("bits", str(DEFAULT_BITS)), options.pop("hnsw", "no")
    if bits not in ("2", "4") or hnsw not in ("yes", "no"):
        raise StoreError(f"invalid store options bits={bits} and hnsw={hnsw}; supported: bits=2 or 4; hnsw=yes or no.")
    return Postgres(urlunsplit(address._replace(query=urlencode(options))), bits=int(bits), hnsw=hnsw == "yes")


def _vector_literal(numbers: np.ndarray) -> str:
    return "[" + ",".join(str(int(number)) for number in numbers) + "]"


def _episode(
    id: str, text: str, at: float, importance: float, uses: int, codes: bytes, sources: list[str], archived: bool,
    details: dict[str, Any],
) -> Episode:  # fmt: skip
    return Episode(id, text, at, importance, uses, bytes(codes), tuple(sources), archived, details)
