"""A cache of vectors on disk: each text of an encoder is computed once on this machine."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from memometer.models.downloads import models_folder


class VectorCache:
    """Stores bytes by the SHA-256 of a text, in one SQLite file per encoder.

    Several processes may use it, and a killed one leaves no partial transaction. If the file cannot be used (a
    read-only disk, a damaged file), everything is computed, and one warning is printed to standard error.

    Args:
        name: name of the encoder; it must change whenever the bytes do.
        folder: folder of the file; None for `vectors` in the models folder.
    """

    def __init__(self, name: str, *, folder: Path | None = None) -> None:
        self.name = name
        self._folder = folder or models_folder() / "vectors"
        self._usable = True

    @property
    def path(self) -> Path:
        """The SQLite file."""
        slug = re.sub(r"[^\w.-]+", "_", self.name)
        return self._folder / f"{slug}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}.sqlite"

    def __call__(
        self,
        texts: Sequence[str],
        compute: Callable[[list[str]], Sequence[bytes]],
        *,
        is_valid: Callable[[bytes], bool],
    ) -> list[bytes]:
        """Return the bytes of each text; missing and invalid ones are computed and stored.

        Args:
            texts: the texts.
            compute: returns the bytes of texts.
            is_valid: returns False for bytes that cannot be right.
        """
        keys = [hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in texts]
        known = {key: value for key, value in self._read(keys) if is_valid(value)}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            computed = list(zip(new, compute(list(new.values())), strict=True))
            known |= computed
            self._use(lambda file: file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", computed))
        return [known[key] for key in keys]

    def _read(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        rows: list[tuple[bytes, bytes]] = []

        def select(file: sqlite3.Connection) -> None:
            for start in range(0, len(keys), 500):  # within the parameter limit of any SQLite
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                rows.extend(file.execute(f"SELECT text, vector FROM vectors WHERE text IN ({marks})", part))

        self._use(select)
        return rows

    def _use(self, action: Callable[[sqlite3.Connection], object]) -> None:
        """Run an action on the open file in one transaction; after a failure, do nothing."""
        if not self._usable:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as file, file:
                file.execute("CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB)")
                action(file)
        except (OSError, sqlite3.Error) as error:
            self._usable = False
            from memometer.models.errors import describe

            print(f"Vectors are not cached, because {self.path} cannot be used ({describe(error)}).", file=sys.stderr)
