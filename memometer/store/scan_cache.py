"""What a question compares with every episode of a scope: vectors and lengths, in the order of rows.

A small scope's vectors are held in memory. Those of a large one are read block by block from a sidecar: a file beside
the store that is derived from it, checked by its sha256, and written again whenever it does not fit; losing it loses
nothing, and memory does not grow with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np

from memometer.store.episode import Vectors
from memometer.store.quantise import Quantiser

SIDECAR_FROM = 50_000
"""Vectors of a scope from which there is a sidecar."""

MOST_SCOPES, MOST_ROWS = 256, 500_000
"""Columns that are kept for the next question."""

_BLOCK_ROWS = 1024
_READ_BYTES = 2**20
_BATCH = 20_000


def forget_the_oldest(known: OrderedDict[str, Columns]) -> None:
    """Let go of those that were not asked for longest, the first ones, where there are too many."""
    while len(known) > 1 and (len(known) > MOST_SCOPES or sum(map(len, known.values())) > MOST_ROWS):
        known.popitem(last=False)


def sidecar_of(path: Path, number: int) -> Path:
    """Where the sidecar of a scope lies."""
    return path.with_name(f"{path.name}.{number}.vectors")


class Columns:
    """The vectors and lengths of a scope's episodes that can be found.

    Args:
        number: the scope's.
        rewrites: how often its rows were changed other than by adding; with another number, these are of no use.
        vectors: what they are; None where there are none.
        store: the store's identity, which a sidecar must name.
        path: of the store, beside which sidecars lie.
    """

    def __init__(self, number: int, rewrites: int, vectors: Vectors | None, *, store: str, path: Path) -> None:
        self.state = (number, rewrites, vectors)
        self.number = number
        self._vectors = vectors
        self._identity = {"scope": number, "rewrites": rewrites, "store": store, "vectors": vectors and asdict(vectors)}
        self._path = sidecar_of(path, number)
        self._sidecar: IO[bytes] | None = None
        self._rows, self._lengths, self._with_vector = array("q"), array("i"), array("b")
        self._norms = array("f")
        self._in_file = 0  # how many vectors are in the sidecar, the first ones
        self._start = 0  # where they begin in it
        self._tail = bytearray()  # codes of the others
        self._looked = False

    def __del__(self) -> None:
        if self._sidecar:
            self._sidecar.close()

    def __len__(self) -> int:
        return len(self._rows)

    def catch_up(self, file: sqlite3.Connection) -> None:
        """Take up what was added since; reads inside the caller's transaction."""
        if not self._looked:
            self._looked = True
            self._open()
        last = self._rows[-1] if self._rows else 0
        # From the start by the scope's own index; what is new is at the end of all rows.
        scope, codes = "+scope" if last else "scope", "codes" if self._vectors else "NULL"
        query = f"SELECT row, length, {codes} FROM episodes WHERE {scope} = ? AND row > ? AND NOT archived ORDER BY row"
        cursor = file.execute(query, (self.number, last))
        while batch := cursor.fetchmany(_BATCH):
            for row, length, code in batch:
                self._rows.append(row)
                self._lengths.append(length)
                self._with_vector.append(code is not None)
                self._tail += code or b""
            if self._vectors:
                self._measure(self._vectors.quantiser)
                if len(self._norms) >= SIDECAR_FROM and len(self._norms) - self._in_file > len(self._norms) // 4:
                    self._write()

    def _measure(self, quantiser: Quantiser) -> None:
        """Take down the length of vectors that are new in the tail. In a function of its own, because the tail cannot
        grow while an array looks at it."""
        new = self._tail_matrix(quantiser)[len(self._norms) - self._in_file :]
        self._norms.frombytes(quantiser.norms(new).tobytes())

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """How many terms each of these rows has."""
        known = np.frombuffer(self._rows, np.int64)
        return np.frombuffer(self._lengths, np.int32)[np.searchsorted(known, rows)].astype(float)

    def around(self, rows: Sequence[int], reach: int) -> dict[int, list[int]]:
        """For each of these rows the rows up to `reach` before and after it, with itself."""
        places = np.searchsorted(np.frombuffer(self._rows, np.int64), np.array(rows, np.int64)).tolist()
        return {
            row: self._rows[max(0, place - reach) : place + reach + 1].tolist()
            for row, place in zip(rows, places, strict=True)
        }

    def cosines(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows that have a vector, and the cosine of each with a `Quantiser.query`."""
        if self._vectors is None or not self._norms:
            return np.zeros(0, np.int64), np.zeros(0)
        quantiser = self._vectors.quantiser
        rows = np.array(self._rows, np.int64)
        if len(self._norms) < len(rows):
            rows = rows[np.array(self._with_vector, bool)]
        norms = np.frombuffer(self._norms, np.float32)
        found = np.empty(len(rows))
        for start in range(0, self._in_file, _BLOCK_ROWS):
            end = min(start + _BLOCK_ROWS, self._in_file)
            found[start:end] = quantiser.cosines(self._block(start, end), norms[start:end], query)
        found[self._in_file :] = quantiser.cosines(self._tail_matrix(quantiser), norms[self._in_file :], query)
        return rows, found

    def _tail_matrix(self, quantiser: Quantiser) -> np.ndarray:
        return np.frombuffer(self._tail, np.uint8).reshape(-1, quantiser.bytes)

    def _block(self, start: int, end: int) -> np.ndarray:
        assert self._sidecar
        assert self._vectors
        size = self._vectors.quantiser.bytes
        self._sidecar.seek(self._start + start * size)
        return np.frombuffer(self._sidecar.read((end - start) * size), np.uint8).reshape(end - start, size)

    # ------------------------------------------------------------ the sidecar

    def _open(self) -> None:
        """Take the sidecar, where it is whole and of this very state; otherwise it is left to be written again."""
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
            parts = [file.read(size) for size in (8 * count, 4 * count, count, 4 * with_vector)]
            for part in parts:
                digest.update(part)
            start = file.tell()
            left = with_vector * self._vectors.quantiser.bytes
            while left > 0 and (part := file.read(min(left, _READ_BYTES))):
                digest.update(part)
                left -= len(part)
            whole = left == 0 and file.read() == digest.digest()
        except (ValueError, KeyError, TypeError, OSError):
            whole, head = False, {}
        if not whole or head != self._identity:
            file.close()
            return
        self._rows.frombytes(parts[0])
        self._lengths.frombytes(parts[1])
        self._with_vector.frombytes(parts[2])
        self._norms.frombytes(parts[3])
        self._sidecar, self._start, self._in_file = file, start, with_vector

    def _write(self) -> None:
        """Write all vectors that are known into a new sidecar, and read them from there from now on."""
        if self._vectors is None:
            return
        head = {**self._identity, "count": len(self._rows), "with_vector": len(self._norms)}
        scratch = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        digest = hashlib.sha256()
        try:
            with scratch.open("wb") as file:

                def put(part: bytes) -> None:
                    digest.update(part)
                    file.write(part)

                put(json.dumps(head).encode() + b"\n")
                for column in (self._rows, self._lengths, self._with_vector, self._norms):
                    put(column.tobytes())
                start = file.tell()
                for first in range(0, self._in_file, _BLOCK_ROWS):
                    put(self._block(first, min(first + _BLOCK_ROWS, self._in_file)).tobytes())
                put(bytes(self._tail))
                file.write(digest.digest())
            scratch.replace(self._path)
            written = self._path.open("rb")
        except OSError:  # no room, or a read-only folder: the vectors stay in memory
            scratch.unlink(missing_ok=True)
            return
        if self._sidecar:
            self._sidecar.close()
        self._sidecar, self._start, self._in_file, self._tail = written, start, len(self._norms), bytearray()
