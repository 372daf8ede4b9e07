"""The memories that runs opened in a server and have not deleted, so that a killed run leaves none behind for long."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

from filelock import FileLock, Timeout

from memometer.run.environment import user_data_folder


class OpenScopes:
    """A file with the open scopes of this run in one server. Its lock is held while the run lives.

    Nothing is written before the first scope. Without a writable folder the scopes are not noted.

    Args:
        url: The URL of the server.
    """

    def __init__(self, url: str) -> None:
        self._folder = user_data_folder() / "open-scopes" / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._path = self._folder / f"{uuid.uuid4().hex}.txt"
        self._lock: FileLock | None = None
        self._scopes: dict[str, None] = {}

    def add(self, scope: str) -> None:
        """Note a scope before it is opened."""
        self._scopes[scope] = None
        self._write()

    def discard(self, scope: str) -> None:
        """Forget a scope that was deleted."""
        self._scopes.pop(scope, None)
        self._write()

    def _write(self) -> None:
        try:
            if self._lock is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._lock = _lock_of(self._path)
                self._lock.acquire(timeout=0)
            new = self._path.with_suffix(".new")
            new.write_text("".join(f"{scope}\n" for scope in self._scopes), encoding="utf-8")
            os.replace(new, self._path)
        except OSError:
            return

    def left_over(self) -> list[str]:
        """Return the scopes of runs that ended without deleting them, and forget these runs."""
        found: list[str] = []
        try:
            paths = [path for path in self._folder.glob("*.txt") if path != self._path]
            for path in paths:
                found += _of_ended_run(path)
        except OSError:
            pass
        return found

    def stop(self) -> None:
        """Release the file; it is deleted if no scope is left."""
        lock, self._lock = self._lock, None
        if lock is None:
            return
        if not self._scopes:
            self._path.unlink(missing_ok=True)
        lock.release()
        if not self._scopes:
            Path(lock.lock_file).unlink(missing_ok=True)


def _lock_of(path: Path) -> FileLock:
    return FileLock(path.with_suffix(".lock"))


def _of_ended_run(path: Path) -> list[str]:
    """Return the scopes in a file and delete it; empty if its run still lives."""
    lock = _lock_of(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return []
    try:
        scopes = path.read_text(encoding="utf-8").split()
        path.unlink(missing_ok=True)
    except OSError:
        scopes = []
    finally:
        lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)
    return scopes
