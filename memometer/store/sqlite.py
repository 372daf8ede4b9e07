"""A store in one SQLite file: rows, full-text index and quantised vectors, written in one transaction.

The file is in WAL mode: several processes can read and write it, readers wait for no writer, and a killed process loses
nothing that was acknowledged. No extension is needed. inverted_index.py finds rows by term; each scope has its own
postings, so that scopes do not share statistics. scan_cache.py compares the vectors. A deleted text leaves nothing in
the file and its log.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from memometer.retrieval.tokenize import terms
from memometer.store import deadline, inverted_index, maintenance, scan_cache, sqlite_schema
from memometer.store import url as store_url
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
from memometer.store.scan_cache import ScanCache, ScanView
from memometer.store.serialization import (
    DEFAULT_IMPORTANCE,
    from_payload,
    to_payload,
)
from memometer.store.sqlite_file import SQLiteFile

COLUMNS = "id, at, importance, uses, codes, archived, sources, kind, payload, checksum"
SCAN_ROWS = 500  # read at a time


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
            sqlite_schema.prepare(self.file)
            with self.snapshot():
                self.file.load_codec()
                self.identity = self.file.meta("store") or ""
            maintenance.update_index(self.file)
        except StoreError as error:
            self.file.close()
            reason = str(error).rstrip(".")
            raise StoreError(f"cannot open store {path} ({reason}); name another file.") from error
        self._caches = scan_cache.new_cache()
        self._caches_lock = threading.Lock()

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
            occurrences: dict[str, inverted_index.Places] = defaultdict(list)
            new = [self._add(number, episode, occurrences) for episode in change.add]
            inverted_index.add(self.file, number, occurrences)
            for id in change.archive:
                self._archive(number, id)
            for id in change.restore:
                self._restore(number, id)
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

    def _add(self, scope: int, episode: Episode, occurrences: dict[str, inverted_index.Places]) -> bool:
        for known in self._get(scope, [episode.id]):
            check_same(known, episode)
            if known.archived and not episode.archived:
                self._restore(scope, episode.id)
            return False
        kind, payload = self.file.pack(to_payload(episode))
        words = terms(episode.text)
        codes = episode.codes or None
        at = float(episode.at)
        row = self.file.execute(
            f"INSERT INTO episodes (scope, length, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            scope,
            len(words),
            episode.id,
            at,
            None if episode.importance == DEFAULT_IMPORTANCE else episode.importance,
            episode.uses,
            codes,
            int(episode.archived),
            json.dumps(episode.sources) if episode.sources else None,
            kind,
            payload,
            sqlite_schema.checksum(episode.id, at, codes, kind, payload),
        ).lastrowid
        assert row is not None
        if episode.archived:
            self._count(scope, archived=1)
        else:
            for term, count in Counter(words).items():
                occurrences[term].append((row, count))
            self._count(scope, live=1, terms=len(words))
        return True

    def _archive(self, scope: int, id: str) -> None:
        query = "SELECT row, kind, payload FROM episodes WHERE scope = ? AND id = ? AND NOT archived"
        if found := self.file.one(query, scope, id):
            row, kind, payload = found
            words = terms(from_payload(self.file.unpack(kind, payload))[0])
            inverted_index.remove(self.file, scope, row, words)
            self.file.execute("UPDATE episodes SET archived = 1 WHERE row = ?", row)
            self._count(scope, live=-1, archived=1, terms=-len(words), rewrites=1)

    def _restore(self, scope: int, id: str) -> None:
        query = "SELECT row, kind, payload FROM episodes WHERE scope = ? AND id = ? AND archived"
        if found := self.file.one(query, scope, id):
            row, kind, payload = found
            words = terms(from_payload(self.file.unpack(kind, payload))[0])
            inverted_index.add(self.file, scope, {term: [(row, count)] for term, count in Counter(words).items()})
            self.file.execute("UPDATE episodes SET archived = 0, length = ? WHERE row = ?", len(words), row)
            self._count(scope, live=1, archived=-1, terms=len(words), rewrites=1)

    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        with self.transaction():
            number = self._number(scope)
            if ids is None:
                ids = [id for (id,) in self.file.execute("SELECT id FROM episodes WHERE scope = ?", number)]
            deleted = sum(self._delete(number, id) for id in dict.fromkeys(ids))
            if deleted:
                self._count(number, archived=-deleted, rewrites=1)
                scan_cache.sidecar_of(self.file.path, number).unlink(missing_ok=True)
                self.file.note_deletion()
            self.file.execute("UPDATE scopes SET changes = ? WHERE scope = ?", change_mark(), number)
            return deleted

    def _delete(self, scope: int, id: str) -> int:
        query = "SELECT row, kind, payload FROM episodes WHERE scope = ? AND id = ?"
        found = self.file.one(query, scope, id)
        if not found:
            return 0
        deadline.check()
        self._archive(scope, id)  # removes it from the index
        row, kind, payload = found
        text = self.file.unpack(kind, payload)
        self.file.execute("DELETE FROM episodes WHERE row = ?", row)
        maintenance.forget_dictionaries(self.file, text)
        return 1

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
        if len(ids) == 1:
            where, values = "scope = ? AND id = ?", (scope, ids[0])
        else:
            where, values = "scope = ? AND id IN (SELECT value FROM json_each(?))", (scope, json.dumps(list(ids)))
        found = {episode.id: episode for _, episode in self._episodes(where, *values)}
        return [found[id] for id in ids if id in found]

    def _episodes(self, where: str, *values: Any) -> list[tuple[int, Episode]]:
        """Return rows and episodes in one value, because Python yields to other threads at each row of a result."""
        names = "row, id, quote(at), quote(importance), uses, archived, sources, kind, checksum"
        listed, codes, payloads = self.file.one(
            f"SELECT json_group_array(json_array({names})), group_concat(hex(coalesce(codes, ''))), "
            f"group_concat(hex(payload)) FROM (SELECT * FROM episodes WHERE {where})",
            *values,
        )
        columns = zip(json.loads(listed), (codes or "").split(","), (payloads or "").split(","), strict=False)
        return [(fields[0], self._episode([*fields[1:], code, payload])) for fields, code, payload in columns]

    def scan(self, scope: str) -> Iterator[Episode]:
        last = 0
        while True:
            with self.snapshot():
                number = self._number(scope)
                found = self._episodes("+scope = ? AND row > ? ORDER BY row LIMIT ?", number, last, SCAN_ROWS)
            if not found:
                return
            yield from (episode for _, episode in found)
            last = found[-1][0]

    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        with self.snapshot():
            number, view = self._number(scope), self._view(scope)
            found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
            for term in words:
                rows, counts = inverted_index.rows_with(self.file, number, term)
                if len(rows):
                    found[term] = (rows, counts, view.lengths_of(rows))
            return found

    def nearest(self, scope: str, query: np.ndarray, k: int) -> list[int]:
        with self.snapshot():
            rows, cosines = self._view(scope).cosines(query)
            return self.top_rows(scope, rows, cosines, k)

    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        with self.snapshot():
            # Of the time of `before` there may be any number of rows; those with smaller ids are on earlier pages.
            count = k + (self._count_at(scope, before[0]) if before else 0)
            rows, at = self._view(scope).newest(count, before[0] if before else None)
            ids = self.ids(scope, rows.tolist())
        placed = sorted(zip((-at).tolist(), ids, rows.tolist(), strict=True))
        after = (-before[0], before[1]) if before else None
        return [row for time, id, row in placed if after is None or (time, id) > after][:k]

    def _count_at(self, scope: str, at: float) -> int:
        query = "SELECT count(*) FROM episodes WHERE scope = ? AND at = ?"
        return int(self.file.one(query, self._number(scope), at)[0])

    def neighbours(self, scope: str, rows: np.ndarray, distance: int) -> np.ndarray:
        with self.snapshot():
            return self._view(scope).neighbours(rows, distance)

    def columns(self, scope: str, rows: np.ndarray, query: np.ndarray | None, *, uses: bool = False) -> Columns:
        with self.snapshot():
            columns = self._view(scope).columns(rows, query)
            if uses:
                used = self._listed("json_array(row, uses)", "row", rows.tolist())
                columns = replace(columns, uses=np.array([count for _, count in sorted(used)], float))
            return columns

    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        with self.snapshot():
            found = dict(self._listed("json_array(row, id)", "row", rows))
            return [found[row] for row in rows]

    def _listed(self, value: str, column: str, wanted: Sequence[Any]) -> list[Any]:
        query = f"SELECT json_group_array({value}) FROM episodes WHERE {column} IN (SELECT value FROM json_each(?))"
        listed: list[Any] = json.loads(self.file.one(query, json.dumps(list(wanted)))[0])
        return listed

    def snapshot(self) -> AbstractContextManager[None]:
        return self.file.snapshot()

    def transaction(self) -> AbstractContextManager[None]:
        return self.file.transaction()

    def close(self) -> None:
        self._caches.clear()
        self.file.close()

    def compact(self) -> None:
        maintenance.compact(self.file)

    def erase(self) -> None:
        self.file.erase()

    def check(self) -> list[str]:
        return maintenance.check(self.file)

    # ------------------------------------------------------------ private

    def _number(self, scope: str) -> int:
        found = self.file.one("SELECT scope FROM scopes WHERE name = ?", scope)
        return int(found[0]) if found else 0

    def _view(self, scope: str) -> ScanView:
        """Return the columns of a scope that this snapshot sees."""
        query = "SELECT scope, rewrites, live FROM scopes WHERE name = ?"
        number, rewrites, live = self.file.one(query, scope) or (0, 0, 0)
        state = (number, rewrites, self.vector_format())
        with self._caches_lock:
            cache = self._caches.get(scope)
        if cache is None or cache.state != state:
            cache = ScanCache(*state, store=self.identity, path=self.file.path)
        view = cache.view(self.file, live)
        with self._caches_lock:
            self._caches[scope] = cache
        return view

    def _episode(self, columns: Sequence[Any]) -> Episode:
        id, at, importance, uses, archived, sources, kind, checksum, codes, payload = columns
        packed, quantised = bytes.fromhex(payload), bytes.fromhex(codes)
        if sqlite_schema.checksum(id, float(at), quantised, kind, packed) != checksum:
            raise StoreError(f"the row of {id!r} in {self.file.path} is damaged; restore the file from a copy.")
        text, details = from_payload(self.file.unpack(kind, packed))
        weight = DEFAULT_IMPORTANCE if importance == "NULL" else float(importance)
        merged_ids = tuple(json.loads(sources)) if sources else ()
        return Episode(id, text, float(at), weight, uses, quantised, merged_ids, bool(archived), details)


def from_url(url: str) -> SQLite:
    """Open `sqlite:///relative.db` or `sqlite:////absolute.db`, with options of `SQLite` after a `?`."""
    allowed = {"bits": ("2", "4"), "compression": ("zstd", "lz4"), "synchronous": ("full", "normal")}
    options = store_url.options_of(url, allowed)
    return SQLite(store_url.file_of(url), **{**options, "bits": int(options["bits"])})  # type: ignore[arg-type]
