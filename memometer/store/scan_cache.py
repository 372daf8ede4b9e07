"""Vectors and text lengths of a SQLite scope in row order, cached for searches that compare all of them.

The vectors of a small scope are held in memory. Those of a large one are read block by block from a sidecar file next
to the store, so that memory use does not grow with the scope. A sidecar is derived data with a SHA-256 checksum. It is
written again if it is missing, damaged or outdated.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from array import array
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from cachetools import LRUCache

from memometer.store.episode import Columns, VectorFormat
from memometer.store.quantise import Quantiser
from memometer.store.serialization import DEFAULT_IMPORTANCE
from memometer.store.sqlite_file import SQLiteFile

SIDECAR_FROM = 50_000
"""Number of vectors in a scope from which a sidecar is written."""

MAX_SCOPES, MAX_ROWS = 256, 500_000
"""Limits of the cache of all scopes."""

_BLOCK_ROWS = 1024
_READ_BYTES = 2**20
_BATCH = 20_000


def new_cache() -> LRUCache[str, ScanCache]:
    """Return a cache for the least recently used scopes; the last one used stays, however large it is."""

    def rows(cached: ScanCache) -> int:
        return min(MAX_ROWS, max(len(cached), MAX_ROWS // MAX_SCOPES))

    return LRUCache(MAX_ROWS, rows)


def sidecar_of(path: Path, number: int) -> Path:
    """Return the path of a scope's sidecar."""
    return path.with_name(f"{path.name}.{number}.vectors")


class ScanView:
    """The columns of a scope as one snapshot sees them.

    Args:
        cache: the columns, which other threads extend.
        live: the number of rows that the snapshot sees; they come first.
    """

    def __init__(self, cache: ScanCache, live: int) -> None:
        self._cache = cache
        self._live = live

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of terms of each row."""
        with self._cache.lock:
            return self._cache.lengths_of(rows)

    def neighbours(self, rows: np.ndarray, distance: int) -> np.ndarray:
        """Return for each row the rows around it; see `Store.neighbours`."""
        with self._cache.lock:
            return self._cache.neighbours(rows, distance, self._live)

    def columns(self, rows: np.ndarray, query: np.ndarray | None) -> Columns:
        """Return the columns of rows, without uses."""
        with self._cache.lock:
            return self._cache.columns(rows, query)

    def newest(self, k: int, before: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and times of at least the k latest rows with `at <= before`, in any order."""
        with self._cache.lock:
            return self._cache.newest(k, before, self._live)

    def cosines(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that have a vector, and the cosine of each with a `Quantiser.query`."""
        with self._cache.lock:
            return self._cache.cosines(query, self._live)


class ScanCache:
    """The vectors and lengths of a scope's searchable episodes.

    Args:
        number: number of the scope.
        rewrites: number of changes to the scope's existing rows. A cache with another number is outdated.
        vectors: the vector format; None if the store has no vectors.
        store: unique id of the store, recorded in the sidecar.
        path: path of the store.
    """

    def __init__(self, number: int, rewrites: int, vectors: VectorFormat | None, *, store: str, path: Path) -> None:
        self.state = (number, rewrites, vectors)
        self.number = number
        self._vectors = vectors
        self._identity = {
            "version": 2,
            "scope": number,
            "rewrites": rewrites,
            "store": store,
            "vectors": vectors and asdict(vectors),
        }
        self._path = sidecar_of(path, number)
        self._sidecar: IO[bytes] | None = None
        self._rows, self._lengths, self._with_vector = array("q"), array("i"), array("b")
        self._at, self._importance = array("d"), array("d")
        self._norms = array("f")
        self._in_file = 0  # number of vectors in the sidecar; they come first
        self._start = 0  # offset of the vectors in the sidecar
        self._tail = bytearray()  # codes of the other vectors
        self._is_new = True
        self.lock = threading.Lock()

    def __del__(self) -> None:
        if self._sidecar:
            self._sidecar.close()

    def __len__(self) -> int:
        return len(self._rows)

    def view(self, file: SQLiteFile, live: int) -> ScanView:
        """Return what the caller's snapshot sees.

        Args:
            file: the store's file, in a snapshot or transaction.
            live: the number of searchable episodes in it. Others may have read further rows into the cache already.
        """
        with self.lock:
            if len(self._rows) < live:
                self._update(file)
        return ScanView(self, live)

    def _update(self, file: SQLiteFile) -> None:
        """Read the rows that were added since the last call."""
        if self._is_new:
            self._is_new = False
            self._read_sidecar()
        last = self._rows[-1] if self._rows else 0
        # All rows are read by the scope's index; new ones are at the end of the table.
        scope, codes = "+scope" if last else "scope", "codes" if self._vectors else "NULL"
        where = f"{scope} = ? AND row > ? AND NOT archived ORDER BY row"
        query = f"SELECT row, length, at, importance, {codes} FROM episodes WHERE {where}"
        cursor = file.execute(query, self.number, last)
        while batch := cursor.fetchmany(_BATCH):
            for row, length, at, importance, code in batch:
                self._rows.append(row)
                self._lengths.append(length)
                self._at.append(at)
                self._importance.append(DEFAULT_IMPORTANCE if importance is None else importance)
                self._with_vector.append(code is not None)
                self._tail += code or b""
            if self._vectors:
                self._add_norms(self._vectors.quantiser)
                if len(self._norms) >= SIDECAR_FROM and len(self._norms) - self._in_file > len(self._norms) // 4:
                    self._write_sidecar()

    def _add_norms(self, quantiser: Quantiser) -> None:
        """Compute the lengths of new vectors. The tail cannot grow while arrays of this function view it."""
        new = self._tail_matrix(quantiser)[len(self._norms) - self._in_file :]
        self._norms.frombytes(quantiser.norms(new).tobytes())

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of terms of each row."""
        known = np.frombuffer(self._rows, np.int64)
        return np.frombuffer(self._lengths, np.int32)[np.searchsorted(known, rows)].astype(float)

    def _places_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(np.frombuffer(self._rows, np.int64), rows)

    def neighbours(self, rows: np.ndarray, distance: int, live: int) -> np.ndarray:
        """Return for each row the rows around it among the first `live` rows; see `Store.neighbours`."""
        if not len(rows):
            return np.zeros((0, 2 * distance + 1), np.int64)
        places = self._places_of(rows)[:, None] + np.arange(-distance, distance + 1)
        known = np.frombuffer(self._rows, np.int64)
        return np.where((places >= 0) & (places < live), known[np.clip(places, 0, live - 1)], -1)

    def columns(self, rows: np.ndarray, query: np.ndarray | None) -> Columns:
        """Return the columns of rows, without uses."""
        places = self._places_of(rows)
        at, importance = (np.frombuffer(column, float)[places] for column in (self._at, self._importance))
        dense = np.zeros(len(rows))
        has_vector = np.array(self._with_vector, bool)
        chosen = np.flatnonzero(has_vector[places])
        if query is not None and self._vectors and len(chosen):
            number = places if has_vector.all() else np.cumsum(has_vector)[places] - 1
            vectors = number[chosen]
            norms = np.frombuffer(self._norms, np.float32)[vectors]
            dense[chosen] = self._vectors.quantiser.cosines(self._codes(vectors), norms, query)
        return Columns(rows, at, importance, np.zeros(len(rows)), dense)

    def _codes(self, vectors: np.ndarray) -> np.ndarray:
        """Return the codes of vectors, by their numbers, ascending."""
        assert self._vectors
        in_file = int(np.searchsorted(vectors, self._in_file))
        tail = self._tail_matrix(self._vectors.quantiser)[vectors[in_file:] - self._in_file]
        if not in_file:
            return tail
        assert self._sidecar
        size = (self._in_file, self._vectors.quantiser.bytes)
        mapped = np.memmap(self._sidecar, np.uint8, "r", self._start, size)
        return np.concatenate([mapped[vectors[:in_file]], tail])

    def newest(self, k: int, before: float | None, live: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and times of at least the k latest of the first `live` rows with `at <= before`."""
        rows, at = np.array(self._rows[:live], np.int64), np.array(self._at[:live], float)
        if before is not None:
            rows, at = rows[at <= before], at[at <= before]
        if len(rows) > k:
            enough = at >= np.partition(at, -k)[-k]
            rows, at = rows[enough], at[enough]
        return rows, at

    def cosines(self, query: np.ndarray, live: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the first `live` ones that have a vector, and the cosine of each with a query."""
        rows, cosines = self._all_cosines(query)
        count = sum(self._with_vector[:live]) if live < len(self._rows) else len(rows)
        return rows[:count], cosines[:count]

    def _all_cosines(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._vectors is None or not self._norms:
            return np.zeros(0, np.int64), np.zeros(0)
        quantiser = self._vectors.quantiser
        rows = np.array(self._rows, np.int64)
        if len(self._norms) < len(rows):
            rows = rows[np.array(self._with_vector, bool)]
        norms = np.frombuffer(self._norms, np.float32)
        cosines = np.empty(len(rows))
        for start in range(0, self._in_file, _BLOCK_ROWS):
            end = min(start + _BLOCK_ROWS, self._in_file)
            cosines[start:end] = quantiser.cosines(self._block(start, end), norms[start:end], query)
        cosines[self._in_file :] = quantiser.cosines(self._tail_matrix(quantiser), norms[self._in_file :], query)
        return rows, cosines

    def _tail_matrix(self, quantiser: Quantiser) -> np.ndarray:
        return np.frombuffer(self._tail, np.uint8).reshape(-1, quantiser.bytes)

    def _block(self, start: int, end: int) -> np.ndarray:
        assert self._sidecar
        assert self._vectors
        size = self._vectors.quantiser.bytes
        self._sidecar.seek(self._start + start * size)
        return np.frombuffer(self._sidecar.read((end - start) * size), np.uint8).reshape(end - start, size)

    # ------------------------------------------------------------ the sidecar

    def _read_sidecar(self) -> None:
        """Use the sidecar if it is intact and up to date."""
        if self._vectors is None:
            return
        try:
            file = self._path.open("rb")
        except OSError:
            return
        try:
            line = file.readline(10_000)
            digest = hashlib.sha256(line)
            head = json.loads(line)
            count, with_vector = head.pop("count"), head.pop("with_vector")
            parts = [file.read(size) for size in (8 * count, 4 * count, count, 8 * count, 8 * count, 4 * with_vector)]
            for part in parts:
                digest.update(part)
            start = file.tell()
            left = with_vector * self._vectors.quantiser.bytes
            while left > 0 and (part := file.read(min(left, _READ_BYTES))):
                digest.update(part)
                left -= len(part)
            is_valid = left == 0 and file.read() == digest.digest() and head == self._identity
        except (ValueError, KeyError, TypeError, OSError):
            is_valid = False
        if not is_valid:
            file.close()
            return
        self._rows.frombytes(parts[0])
        self._lengths.frombytes(parts[1])
        self._with_vector.frombytes(parts[2])
        self._at.frombytes(parts[3])
        self._importance.frombytes(parts[4])
        self._norms.frombytes(parts[5])
        self._sidecar, self._start, self._in_file = file, start, with_vector

    def _columns(self) -> tuple[array[Any], ...]:
        return self._rows, self._lengths, self._with_vector, self._at, self._importance, self._norms

    def _write_sidecar(self) -> None:
        """Move all vectors to a new sidecar."""
        if self._vectors is None:
            return
        head = {**self._identity, "count": len(self._rows), "with_vector": len(self._norms)}
        scratch = self._path.with_name(f"{self._path.name}.{os.getpid()}-{threading.get_ident()}")
        digest = hashlib.sha256()
        try:
            with open(scratch, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:

                def put(part: bytes) -> None:
                    digest.update(part)
                    file.write(part)

                put(json.dumps(head).encode() + b"\n")
                for column in self._columns():
                    put(column.tobytes())
                start = file.tell()
                for first in range(0, self._in_file, _BLOCK_ROWS):
                    put(self._block(first, min(first + _BLOCK_ROWS, self._in_file)).tobytes())
                put(bytes(self._tail))
                file.write(digest.digest())
            scratch.replace(self._path)
            written = self._path.open("rb")
        except OSError:  # a full disk or a read-only folder: the vectors stay in memory
            scratch.unlink(missing_ok=True)
            return
        if self._sidecar:
            self._sidecar.close()
        self._sidecar, self._start, self._in_file, self._tail = written, start, len(self._norms), bytearray()
