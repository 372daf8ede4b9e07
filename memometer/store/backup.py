"""Backup, restoration and salvage of stores. A backup is one SQLite file, whatever store it comes from."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memometer.store.compression import Codec
from memometer.store.episode import Episode, StoreError, VectorFormat
from memometer.store.migrate import batches, copy
from memometer.store.protocol import Store
from memometer.store.serialization import DEFAULT_IMPORTANCE, from_payload
from memometer.store.sqlite import SQLite


def backup(source: Store, path: Path) -> str:
    """Write one moment of a store to a file and verify it. The store may be in use.

    Args:
        source: the store.
        path: the file; it must not exist.

    Returns:
        The digest of the content; see `digest`.

    Raises:
        StoreError: the file exists or cannot be written, or it differs from the store.
    """
    scratch = _new_file(path)
    try:
        if isinstance(source, SQLite):
            source.file.copy_to(scratch)
            with SQLite(scratch) as written:
                written.erase()  # deletions may have left copies of rows in pages
                problems, content = written.check(), digest(written)
        else:
            with source.snapshot():
                with SQLite(scratch) as written:
                    copy_all(source, written)
                    problems, content = written.check(), digest(written)
                if digest(source) != content:
                    problems.append("The copy differs from the store.")
        if problems:
            raise StoreError(f"the backup failed: {problems[0]} Run `memometer store check` on the store.")
        os.link(scratch, path)  # unlike a renaming, it replaces no file
    except OSError as error:
        raise StoreError(f"cannot write {path} ({error.strerror or error}); name another file.") from error
    finally:
        _remove(scratch)
    return content


def restore(path: Path, target: Store) -> str:
    """Copy a backup into an empty store and verify it.

    Args:
        path: the backup.
        target: the store.

    Returns:
        The digest of the content.

    Raises:
        StoreError: the backup is damaged, the store is not empty, or the copy differs.
    """
    if target.scopes():
        raise StoreError("the store is not empty; restore into a new store, or copy with `memometer store migrate`.")
    with SQLite(path) as source:
        if problems := source.check():
            raise StoreError(f"{path} cannot be restored: {problems[0]} Use `memometer store salvage`.")
        copy_all(source, target)
        content = digest(source)
    if digest(target) != content:
        raise StoreError("the restored store differs from the backup; restore again into another store.")
    return content


def copy_all(source: Store, target: Store) -> None:
    """Copy all scopes into an empty store."""
    if kind := source.vector_format():
        target.set_vector_format(kind)
    for scope in source.scopes():
        copy(source.scan(scope), target, scope)


def digest(store: Store) -> str:
    """Return the SHA-256 of all episodes in order, and of the vector format. All kinds of stores have the same."""
    total = hashlib.sha256(json.dumps(asdict(kind) if (kind := store.vector_format()) else None).encode())
    for scope in store.scopes():
        total.update(json.dumps(scope).encode())
        for episode in store.scan(scope):
            fields = {**vars(episode), "codes": episode.codes.hex(), "details": dict(episode.details)}
            total.update(json.dumps(fields, sort_keys=True).encode())
    return total.hexdigest()


def _new_file(path: Path) -> Path:
    """Create an empty file that only the owner may read, next to a path that must not exist."""
    if path.exists():
        raise StoreError(f"{path} exists; name a new file.")
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        os.close(os.open(scratch, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
    except OSError as error:
        raise StoreError(f"cannot write {path} ({error.strerror or error}); name another file.") from error
    return scratch


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


# ---------------------------------------------------------------- salvage


def salvage(path: Path, target: Store) -> tuple[int, int]:
    """Copy the readable episodes of a damaged SQLite store into an empty store. The damaged file is only read.

    Args:
        path: the damaged file.
        target: the store.

    Returns:
        The numbers of saved and of lost episodes.

    Raises:
        StoreError: nothing can be read, or the store is not empty.
    """
    if target.scopes():
        raise StoreError("the store is not empty; name a new one.")
    saved = lost = 0
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise StoreError(f"cannot read {path} ({error}).") from error
    with closing(connection):
        names = {row[0]: row[1] for row in _readable(connection, "SELECT scope, name FROM scopes")}
        codec = Codec(dict(_readable(connection, "SELECT number, bytes FROM dictionaries")))
        for (vectors,) in _readable(connection, "SELECT value FROM meta WHERE name = 'vectors'"):
            with suppress(ValueError, TypeError, StoreError):
                target.set_vector_format(VectorFormat(**json.loads(vectors)))
        for batch in batches(_rows(connection)):
            for row in batch:
                try:
                    scope, episode = _episode(connection, codec, row)
                    target.change(names.get(scope, f"salvaged-{scope}"), add=[episode])
                    saved += 1
                except (sqlite3.Error, ValueError, KeyError, TypeError, StoreError):
                    lost += 1
    if not saved:
        raise StoreError(f"no episode of {path} can be read; restore a backup.")
    return saved, lost


def _readable(connection: sqlite3.Connection, query: str) -> Iterator[Any]:
    """Yield the rows of a query until one cannot be read."""
    with suppress(sqlite3.Error):
        yield from connection.execute(query)


def _rows(connection: sqlite3.Connection) -> list[int]:
    """Return the numbers of all rows that the table or its index knows."""
    found = {row for (row,) in _readable(connection, "SELECT row FROM episodes ORDER BY row")}
    found |= {row for (row,) in _readable(connection, "SELECT row FROM episodes ORDER BY row DESC")}
    index = "SELECT row FROM episodes INDEXED BY sqlite_autoindex_episodes_1"
    return sorted(found | {row for (row,) in _readable(connection, index)})


def _episode(connection: sqlite3.Connection, codec: Codec, row: int) -> tuple[int, Episode]:
    query = (
        "SELECT scope, id, at, importance, uses, archived, sources, codes, kind, payload FROM episodes WHERE row = ?"
    )
    found = connection.execute(query, (row,)).fetchone()
    if found is None:
        raise KeyError(row)
    scope, id, at, importance, uses, archived, sources, codes, kind, payload = found
    text, details = from_payload(codec.unpack(kind, payload))
    weight = DEFAULT_IMPORTANCE if importance is None else float(importance)
    merged = tuple(json.loads(sources)) if sources else ()
    return int(scope), Episode(id, text, float(at), weight, uses, codes or b"", merged, bool(archived), details)
