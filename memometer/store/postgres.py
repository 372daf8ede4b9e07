"""PostgreSQL with pgvector: text, terms and vectors in one transaction, for many writers on many machines.

Vectors are compared exactly, as whole numbers in half precision, unless the store is opened with `hnsw=yes`: then an
approximate index finds those that are weighed.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np

from memometer.retrieval.tokenize import terms
from memometer.store.episode import Episode, Size, StoreError, Vectors, same_as, standing_for
from memometer.store.protocol import DEFAULT_BITS, Postings, Store

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

FIELDS = "id, text, at, importance, uses, codes, sources, archived, details"
SPARE = 50
"""So many more of the nearest are fetched, and compared again: the server's cosines differ in the last bits."""


class Postgres(Store):
    """Episodes in the tables `memory_…` of a database, which are made where there are none.

    Args:
        url: as libpq takes it.
        bits: a number of a vector, 2 or 4; of a new store.
        hnsw: let an approximate index choose which vectors are weighed.

    Raises StoreError where the server does not answer or lacks pgvector.
    """

    def __init__(self, url: str, *, bits: int = DEFAULT_BITS, hnsw: bool = False) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise StoreError("a postgresql: store needs psycopg: pip install 'psycopg[binary]'.") from error
        self._psycopg = psycopg
        self._url = url
        self.default_bits = bits
        self._hnsw = hnsw
        self._lock = threading.RLock()
        self._depth = 0
        self._open: Any = None
        with self.transaction():
            self._ask("SELECT pg_advisory_xact_lock(7011)")  # two that make the tables at once would collide
            self._ask(SCHEMA)
            self._ask("INSERT INTO memory_meta VALUES ('format', %s) ON CONFLICT DO NOTHING", str(FORMAT))
            if self._one("SELECT value FROM memory_meta WHERE name = 'format'") != (str(FORMAT),):
                raise StoreError(f"the database is no store of format {FORMAT}; name another one.")

    # ------------------------------------------------------------ what is known of it

    def vectors(self) -> Vectors | None:
        with self.reading():
            found = self._one("SELECT value FROM memory_meta WHERE name = 'vectors'")
        return Vectors(**json.loads(found[0])) if found else None

    def declare(self, vectors: Vectors) -> None:
        with self.transaction():
            self._ask("LOCK TABLE memory_meta")
            noted = json.dumps(asdict(vectors.checked_against(self.vectors())))
            self._ask("INSERT INTO memory_meta VALUES ('vectors', %s) ON CONFLICT DO NOTHING", noted)
            if self._hnsw:
                self._ask(
                    "CREATE INDEX IF NOT EXISTS memory_hnsw ON memory_episodes "
                    f"USING hnsw ((levels::halfvec({vectors.dimensions})) halfvec_cosine_ops) WHERE NOT archived"
                )

    def scopes(self) -> list[str]:
        with self.reading():
            return sorted(name for (name,) in self._ask("SELECT name FROM memory_scopes WHERE live + archived > 0"))

    def size(self, scope: str) -> Size:
        with self.reading():
            found = self._one("SELECT live, archived, terms, changes FROM memory_scopes WHERE name = %s", scope)
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
        kind = self.vectors()
        with self.transaction():
            self._ask("INSERT INTO memory_scopes (name) VALUES (%s) ON CONFLICT DO NOTHING", scope)
            # One writer a scope at a time, so that rows are numbered in the order in which they can be seen.
            (number,) = self._one("SELECT scope FROM memory_scopes WHERE name = %s FOR UPDATE", scope)
            self._ask("UPDATE memory_scopes SET changes = changes + 1 WHERE scope = %s", number)
            new = [self._add(number, episode, kind) for episode in add]
            self._archive(number, archive)
            for id, count in (uses or {}).items():
                query = "UPDATE memory_episodes SET uses = uses + %s WHERE scope = %s AND id = %s"
                self._ask(query, count, number, id)
            for id, others in (merge or {}).items():
                self._merge(number, id, others)
        return new

    def _add(self, scope: int, episode: Episode, kind: Vectors | None) -> bool:
        if "\0" in episode.text + episode.id:
            raise StoreError(f"episode {episode.id!r} holds a NUL character, which PostgreSQL cannot; remove it.")
        for known in self._known(scope, [episode.id]):
            same_as(known, episode)
            return False
        words = [f"{scope}_{word}" for word in terms(episode.text)]
        levels = None
        if kind and episode.codes:
            levels = _listed(kind.quantiser.levels(kind.quantiser.matrix([episode.codes]))[0])
        self._ask(
            f"INSERT INTO memory_episodes (scope, {FIELDS}, terms, levels) "
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
        gone = self._ask(
            "UPDATE memory_episodes SET archived = true WHERE scope = %s AND id = ANY(%s) AND NOT archived "
            "RETURNING cardinality(terms)",
            scope,
            list(ids),
        )
        self._count(scope, live=-len(gone), archived=len(gone), terms=-sum(length for (length,) in gone))

    def _merge(self, scope: int, id: str, others: Sequence[str]) -> None:
        live = [episode for episode in self._known(scope, [id, *others]) if not episode.archived]
        if len(live) > 1 and live[0].id == id:
            self._archive(scope, [other.id for other in live[1:]])
            merged = standing_for(live[0], live[1:])
            self._ask(
                "UPDATE memory_episodes SET importance = %s, uses = %s, sources = %s WHERE scope = %s AND id = %s",
                merged.importance,
                merged.uses,
                list(merged.sources),
                scope,
                id,
            )

    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        with self.transaction():
            found = self._one("SELECT scope FROM memory_scopes WHERE name = %s FOR UPDATE", scope)
            if found is None:
                return 0
            gone = self._ask(
                "DELETE FROM memory_episodes WHERE scope = %s AND (%s OR id = ANY(%s)) "
                "RETURNING archived, cardinality(terms)",
                found[0],
                ids is None,
                list(ids or ()),
            )
            live = [length for archived, length in gone if not archived]
            self._count(found[0], live=-len(live), archived=len(live) - len(gone), terms=-sum(live))
            self._ask("UPDATE memory_scopes SET changes = changes + 1 WHERE scope = %s", found[0])
            return len(gone)

    def _count(self, scope: int, *, live: int, archived: int, terms: int) -> None:
        self._ask(
            "UPDATE memory_scopes SET live = live + %s, archived = archived + %s, terms = terms + %s WHERE scope = %s",
            live,
            archived,
            terms,
            scope,
        )

    # ------------------------------------------------------------ reading

    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        with self.reading():
            return self._known(self._number(scope), ids)

    def _known(self, scope: int, ids: Sequence[str]) -> list[Episode]:
        query = f"SELECT {FIELDS} FROM memory_episodes WHERE scope = %s AND id = ANY(%s)"
        found = {fields[0]: _episode(*fields) for fields in self._ask(query, scope, list(ids))}
        return [found[id] for id in ids if id in found]

    def scan(self, scope: str) -> Iterator[Episode]:
        last = 0
        query = f"SELECT row, {FIELDS} FROM memory_episodes WHERE scope = %s AND row > %s ORDER BY row LIMIT 1000"
        while True:
            with self.reading():
                found = self._ask(query, self._number(scope), last)
            if not found:
                return
            for _, *fields in found:
                yield _episode(*fields)
            last = found[-1][0]

    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        with self.reading():
            number = self._number(scope)
            wanted = [f"{number}_{word}" for word in words]
            rows = self._ask(
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
        kind = self.vectors()
        if kind is None:
            return []
        # Of many equal ones those of the smaller ids, unless the index is to choose, which knows of no ids.
        levels, then = (f"levels::halfvec({kind.dimensions})", "") if self._hnsw else ("levels", ', id COLLATE "C"')
        with self.reading():
            if self._hnsw:
                self._ask("SET LOCAL hnsw.iterative_scan = strict_order")
            rows = self._ask(
                "SELECT row, codes FROM memory_episodes WHERE scope = %s AND NOT archived AND levels IS NOT NULL "
                f"ORDER BY {levels} <=> %s::halfvec({kind.dimensions}){then} LIMIT %s",
                self._number(scope),
                _listed(query),
                k + SPARE,
            )
            if not rows:
                return []
            codes = kind.quantiser.matrix([codes for _, codes in rows])
            cosines = kind.quantiser.cosines(codes, kind.quantiser.norms(codes), query)
            return self.best(scope, np.array([row for row, _ in rows]), cosines, k)

    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        after, at = ('AND (-at, id COLLATE "C") > (%s, %s)', (-before[0], before[1])) if before else ("", ())
        order = 'ORDER BY at DESC, id COLLATE "C" LIMIT %s'
        query = f"SELECT row FROM memory_episodes WHERE scope = %s AND NOT archived {after} {order}"
        with self.reading():
            return [row for (row,) in self._ask(query, self._number(scope), *at, k)]

    def around(self, scope: str, rows: Sequence[int], reach: int) -> dict[int, list[int]]:
        side = (
            "ARRAY(SELECT row FROM memory_episodes e WHERE scope = %s AND NOT archived AND e.row {} r.row "
            "ORDER BY e.row {} LIMIT %s)"
        )
        query = f"SELECT r.row, {side.format('<', 'DESC')}, {side.format('>', 'ASC')} FROM unnest(%s::bigint[]) r(row)"
        with self.reading():
            number = self._number(scope)
            found = self._ask(query, number, reach, number, reach, list(rows))
        return {row: [*reversed(before), row, *after] for row, before, after in found}

    def rows(self, scope: str, rows: Sequence[int]) -> dict[int, Episode]:
        query = (
            "SELECT row, id, at, importance, uses, codes FROM memory_episodes "
            "WHERE row = ANY(%s) AND scope = %s AND NOT archived ORDER BY row"
        )
        with self.reading():
            found = self._ask(query, list(rows), self._number(scope))
        return {row: Episode(id, "", at, weight, uses, bytes(codes)) for row, id, at, weight, uses, codes in found}

    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        with self.reading():
            found = dict(self._ask("SELECT row, id FROM memory_episodes WHERE row = ANY(%s)", list(rows)))
        return [found[row] for row in rows]

    def check(self) -> list[str]:
        with self.reading():
            wrong = []
            sizes: dict[int, list[int]] = {}
            query = f"SELECT scope, terms, {FIELDS} FROM memory_episodes"
            for scope, indexed, *fields in self._ask(query):
                episode = _episode(*fields)
                if indexed != [f"{scope}_{word}" for word in terms(episode.text)]:
                    wrong.append(f"The index disagrees with the text of {episode.id!r}.")
                size = sizes.setdefault(scope, [0, 0, 0])
                size[0] += not episode.archived
                size[1] += episode.archived
                size[2] += 0 if episode.archived else len(indexed)
            for scope, name, *counted in self._ask("SELECT scope, name, live, archived, terms FROM memory_scopes"):
                if counted != sizes.get(scope, [0, 0, 0]):
                    wrong.append(f"The counts of scope {name!r} are {counted}, and should be {sizes.get(scope)}.")
        return wrong

    def close(self) -> None:
        with self._lock:
            if self._open:
                self._open.close()

    # ------------------------------------------------------------ inside

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._begun("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written in here is there afterwards, or nothing is."""
        with self._begun("BEGIN"):
            yield

    @contextmanager
    def _begun(self, begin: str) -> Iterator[None]:
        with self._lock:
            try:
                if not self._depth:
                    if self._open is None or self._open.closed:
                        self._open = self._psycopg.connect(self._url, autocommit=True)
                    self._ask(begin)
                self._depth += 1
                try:
                    yield
                except BaseException:  # a transaction ends whatever ended its work, Ctrl-C too
                    if self._depth == 1 and not self._open.closed:
                        self._ask("ROLLBACK")
                    raise
                else:
                    if self._depth == 1:
                        self._ask("COMMIT")
                finally:
                    self._depth -= 1
            except self._psycopg.Error as error:
                said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise StoreError(f"the PostgreSQL store cannot do this ({said}); see that the server runs.") from error

    def _ask(self, query: str, *values: Any) -> list[Any]:
        cursor = self._open.execute(query, values or None)
        found: list[Any] = cursor.fetchall() if cursor.description else []
        return found

    def _one(self, query: str, *values: Any) -> Any:
        found = self._ask(query, *values)
        return found[0] if found else None

    def _number(self, scope: str) -> int:
        found = self._one("SELECT scope FROM memory_scopes WHERE name = %s", scope)
        return int(found[0]) if found else 0


def from_url(url: str) -> Postgres:
    """As libpq takes it, with `bits` and `hnsw=yes` behind the `?` besides its own options."""
    address = urlsplit(url)
    options = dict(parse_qsl(address.query))
    bits, hnsw = options.pop("bits", str(DEFAULT_BITS)), options.pop("hnsw", "no")
    if bits not in ("2", "4") or hnsw not in ("yes", "no"):
        raise StoreError(
            f"a postgresql: store cannot have bits={bits} and hnsw={hnsw}; bits are 2 or 4, hnsw yes or no."
        )
    return Postgres(urlunsplit(address._replace(query=urlencode(options))), bits=int(bits), hnsw=hnsw == "yes")


def _listed(numbers: np.ndarray) -> str:
    return "[" + ",".join(str(int(number)) for number in numbers) + "]"


def _episode(
    id: str, text: str, at: float, importance: float, uses: int, codes: bytes, sources: list[str], archived: bool,
    details: dict[str, Any],
) -> Episode:  # fmt: skip
    return Episode(id, text, at, importance, uses, bytes(codes), tuple(sources), archived, details)
