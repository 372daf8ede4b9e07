"""A store in one SQLite file: rows, full-text index and quantised vectors, written in one transaction.

The file is in WAL mode: several processes can read and write it, and a killed process loses nothing that was
acknowledged. No extension is needed. FTS5 serves as an inverted index: each scope has its own terms (`7_kayak`, and
`7_kayak~2` for a second occurrence), so that scopes do not share statistics. Positions are not stored, which halves its
size. BM25 is computed from the postings, because FTS5's own bm25() needs positions. scan_cache.py compares the vectors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from memometer.retrieval.tokenize import terms
from memometer.store import maintenance, scan_cache
from memometer.store import url as store_url
from memometer.store.episode import Episode, ScopeSize, StoreError, VectorFormat, change_mark, check_same, merged
from memometer.store.protocol import DEFAULT_BITS, Change, Postings, Store
from memometer.store.scan_cache import ScanCache
from memometer.store.serialization import (
    DEFAULT_IMPORTANCE,
    from_payload,
    index_entries,
    to_episode,
    to_payload,
    without_text,
)
from memometer.store.sqlite_file import SQLiteFile

COLUMNS = "id, at, importance, uses, codes, archived, sources, kind, payload"


class SQLite(Store):
    """Episodes in one file, which is created if it does not exist.

    Args:
        path: path of the file.
        bits: bits per dimension of a new store's vectors, 2 or 4.
        compression: `zstd` or `lz4`, for texts written from now on.
        synchronous: `full` survives a power failure, `normal` a killed process.

    Raises:
        StoreError: the file cannot be opened or is not a store.
    """

    def __init__(
        self, path: Path, *, bits: int = DEFAULT_BITS, compression: str = "zstd", synchronous: str = "full"
    ) -> None:
        self.default_bits = bits
        self.file = SQLiteFile(Path(path), compression=compression, synchronous=synchronous)
        try:
            maintenance.update_index(self.file)
        except StoreError:
            self.file.close()
            raise
        self._store_id = self.file.meta("store") or ""
        self._caches = scan_cache.new_cache()

    # ------------------------------------------------------------ metadata

    def vector_format(self) -> VectorFormat | None:
        with self.snapshot():
            known = self.file.meta("vectors")
        return VectorFormat(**json.loads(known)) if known else None

    def set_vector_format(self, vectors: VectorFormat) -> None:
        with self.transaction():
            vectors.check_compatible(self.vector_format())
            self.file.set_meta("vectors", json.dumps(asdict(vectors)))

    def scopes(self) -> list[str]:
        query = "SELECT name FROM scopes WHERE live + archived ORDER BY name"
        with self.snapshot():
            return [name for (name,) in self.file.execute(query)]

    def size(self, scope: str) -> ScopeSize:
        with self.snapshot():
            found = self.file.one("SELECT live, archived, terms, changes FROM scopes WHERE name = ?", scope)
        return ScopeSize(*found) if found else ScopeSize()

    # ------------------------------------------------------------ writing

    def apply(self, scope: str, change: Change) -> list[bool]:
        with self.transaction():
            self.file.execute("INSERT OR IGNORE INTO scopes (name) VALUES (?)", scope)
            number = self._number(scope)
            self.file.execute("UPDATE scopes SET changes = ? WHERE scope = ?", change_mark(), number)
            new = [self._add(number, episode) for episode in change.add]
            for id in change.archive:
                self._archive(number, id)
            for id, count in change.uses.items():
                query = "UPDATE episodes SET uses = uses + ? WHERE scope = ? AND id = ?"
                self.file.execute(query, count, number, id)
            for id, others in change.merge.items():
                self._merge(number, id, others)
        return new

    def _merge(self, scope: int, id: str, others: Sequence[str]) -> None:
        live = [episode for episode in self._get(scope, [id, *others]) if not episode.archived]
        if len(live) > 1 and live[0].id == id:
            for other in live[1:]:
                self._archive(scope, other.id)
            whole = merged(live[0], live[1:])
            query = "UPDATE episodes SET importance = ?, uses = ?, sources = ? WHERE scope = ? AND id = ?"
            self.file.execute(query, whole.importance, whole.uses, json.dumps(whole.sources), scope, id)

    def _add(self, scope: int, episode: Episode) -> bool:
        for known in self._get(scope, [episode.id]):
            check_same(known, episode)
            return False
        kind, payload = self.file.pack(to_payload(episode))
        words = terms(episode.text)
        row = self.file.execute(
            f"INSERT INTO episodes (scope, length, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            scope,
            len(words),
            episode.id,
            episode.at,
            None if episode.importance == DEFAULT_IMPORTANCE else episode.importance,
            episode.uses,
            episode.codes or None,
            int(episode.archived),
            json.dumps(episode.sources) if episode.sources else None,
            kind,
            payload,
        ).lastrowid
        if episode.archived:
            self._count(scope, archived=1)
        else:
            self.file.execute("INSERT INTO words (rowid, terms) VALUES (?, ?)", row, index_entries(scope, words))
            self._count(scope, live=1, terms=len(words))
        return True

    def _archive(self, scope: int, id: str) -> None:
        query = "SELECT row, kind, payload FROM episodes WHERE scope = ? AND id = ? AND NOT archived"
        if found := self.file.one(query, scope, id):
            row, kind, payload = found
            words = terms(from_payload(self.file.unpack(kind, payload))[0])
            query = "INSERT INTO words (words, rowid, terms) VALUES ('delete', ?, ?)"
            self.file.execute(query, row, index_entries(scope, words))
            self.file.execute("UPDATE episodes SET archived = 1 WHERE row = ?", row)
            self._count(scope, live=-1, archived=1, terms=-len(words), rewrites=1)

    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        with self.transaction():
            number = self._number(scope)
            if ids is None:
                ids = [id for (id,) in self.file.execute("SELECT id FROM episodes WHERE scope = ?", number)]
            known = [episode.id for episode in self._get(number, list(dict.fromkeys(ids)))]
            for id in known:
                self._archive(number, id)  # removes it from the index
                self.file.execute("DELETE FROM episodes WHERE scope = ? AND id = ?", number, id)
            self._count(number, archived=-len(known), rewrites=1)
            self.file.execute("UPDATE scopes SET changes = ? WHERE scope = ?", change_mark(), number)
            scan_cache.sidecar_of(self.file.path, number).unlink(missing_ok=True)
            return len(known)

    def _count(self, scope: int, *, live: int = 0, archived: int = 0, terms: int = 0, rewrites: int = 0) -> None:
        query = (
            "UPDATE scopes SET live = live + ?, archived = archived + ?, terms = terms + ?, rewrites = rewrites + ? "
            "WHERE scope = ?"
        )
        self.file.execute(query, live, archived, terms, rewrites, scope)

    # ------------------------------------------------------------ reading

    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        with self.snapshot():
            return self._get(self._number(scope), ids)

    def _get(self, scope: int, ids: Sequence[str]) -> list[Episode]:
        query = f"SELECT {COLUMNS} FROM episodes WHERE scope = ? AND id = ?"
        found = (self.file.one(query, scope, id) for id in ids)
        return [self._episode(row) for row in found if row]

    def scan(self, scope: str) -> Iterator[Episode]:
        last = 0
        query = f"SELECT row, {COLUMNS} FROM episodes WHERE +scope = ? AND row > ? ORDER BY row LIMIT 1000"
        while True:
            with self.snapshot():
                found = self.file.execute(query, self._number(scope), last).fetchall()
                episodes = [self._episode(row[1:]) for row in found]
            if not found:
                return
            yield from episodes
            last = found[-1][0]

    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        with self.snapshot():
            number, cache = self._number(scope), self._cache(scope)
            found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
            for term in words:
                rows = more = self._rows_with(f"{number}_{term}")
                counts = np.ones(len(rows))
                while len(more):
                    more = self._rows_with(f"{number}_{term}~{int(counts.max()) + 1}")
                    counts[np.searchsorted(rows, more)] += 1
                if len(rows):
                    found[term] = (rows, counts, cache.lengths_of(rows))
            return found

    def _rows_with(self, entry: str) -> np.ndarray:
        """Return the rows of an index entry, ascending."""
        # As one text, which NumPy parses much faster than SQLite returns rows.
        query = "SELECT group_concat(rowid) FROM words WHERE words MATCH ?"
        (listed,) = self.file.one(query, f'"{entry}"')
        return np.sort(np.fromstring(listed or "", np.int64, sep=","))

    def nearest(self, scope: str, query: np.ndarray, k: int) -> list[int]:
        with self.snapshot():
            rows, cosines = self._cache(scope).cosines(query)
            return self.top_rows(scope, rows, cosines, k)

    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        after, at = ("AND (-at, id) > (?, ?)", (-before[0], before[1])) if before else ("", ())
        query = f"SELECT row FROM episodes WHERE scope = ? AND NOT archived {after} ORDER BY at DESC, id LIMIT ?"
        with self.snapshot():
            return [row for (row,) in self.file.execute(query, self._number(scope), *at, k)]

    def neighbours(self, scope: str, rows: Sequence[int], distance: int) -> dict[int, list[int]]:
        with self.snapshot():
            return self._cache(scope).neighbours(rows, distance)

    def rows(self, scope: str, rows: Sequence[int]) -> dict[int, Episode]:
        query = "SELECT id, at, importance, uses, codes FROM episodes WHERE row = ? AND scope = ? AND NOT archived"
        with self.snapshot():
            number = self._number(scope)
            found = ((row, self.file.one(query, row, number)) for row in rows)
            return {row: without_text(*columns) for row, columns in found if columns}

    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        with self.snapshot():
            return [self.file.one("SELECT id FROM episodes WHERE row = ?", row)[0] for row in rows]

    def snapshot(self) -> AbstractContextManager[None]:
        return self.file.snapshot()

    def transaction(self) -> AbstractContextManager[None]:
        return self.file.transaction()

    def close(self) -> None:
        self._caches.clear()
        self.file.close()

    def compact(self) -> None:
        maintenance.compact(self.file)

    def check(self) -> list[str]:
        return maintenance.check(self.file)

    # ------------------------------------------------------------ private

    def _number(self, scope: str) -> int:
        found = self.file.one("SELECT scope FROM scopes WHERE name = ?", scope)
        return int(found[0]) if found else 0

    def _cache(self, scope: str) -> ScanCache:
        """Return the scope's cache, up to date."""
        number, rewrites = self.file.one("SELECT scope, rewrites FROM scopes WHERE name = ?", scope) or (0, 0)
        state = (number, rewrites, self.vector_format())
        cache = self._caches.get(scope)
        if cache is None or cache.state != state:
            cache = ScanCache(*state, store=self._store_id, path=self.file.path)
        cache.update(self.file)
        self._caches[scope] = cache
        return cache

    def _episode(self, columns: Sequence[Any]) -> Episode:
        *others, kind, payload = columns
        return to_episode(others, self.file.unpack(kind, payload))


def from_url(url: str) -> SQLite:
    """Open `sqlite:///relative.db` or `sqlite:////absolute.db`, with options of `SQLite` after a `?`."""
    allowed = {"bits": ("2", "4"), "compression": ("zstd", "lz4"), "synchronous": ("full", "normal")}
    options = store_url.options_of(url, allowed)
    return SQLite(store_url.file_of(url), **{**options, "bits": int(options["bits"])})  # type: ignore[arg-type]
