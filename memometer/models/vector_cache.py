"""Vectors on disk: each text of an encoder is computed once, by any run on this machine."""

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
    """What an encoder makes of a text, as bytes, in one SQLite file an encoder, by the text's sha256.

    Safe with several processes, and after a kill: a transaction is there whole or not at all. Where the file cannot be
    used (a read-only disk, a damaged file), everything is computed, and a sentence on standard error says so once.

    Args:
        name: the encoder's; whatever changes the bytes must change it.
        folder: where; None for `vectors` in the models folder.
    """

    def __init__(self, name: str, *, folder: Path | None = None) -> None:
        self.name = name
        self._folder = folder or models_folder() / "vectors"
        self._usable = True

    @property
    def path(self) -> Path:
        slug = re.sub(r"[^\w.-]+", "_", self.name)
        return self._folder / f"{slug}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}.sqlite"

    def __call__(
        self,
        texts: Sequence[str],
        compute: Callable[[list[str]], Sequence[bytes]],
        *,
        whole: Callable[[bytes], bool],
    ) -> list[bytes]:
        """The bytes of each text; those that are not there, or not `whole`, are computed and kept."""
        keys = [hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in texts]
        known = {key: value for key, value in self._read(keys) if whole(value)}
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            computed = list(zip(new, compute(list(new.values())), strict=True))
            known |= computed
            self._use(lambda file: file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", computed))
        return [known[key] for key in keys]

    def _read(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        rows: list[tuple[bytes, bytes]] = []

        def select(file: sqlite3.Connection) -> None:
            for start in range(0, len(keys), 500):  # any SQLite takes so many parameters
                asked = keys[start : start + 500]
                marks = ",".join("?" * len(asked))
                rows.extend(file.execute(f"SELECT text, vector FROM vectors WHERE text IN ({marks})", asked))

        self._use(select)
        return rows

    def _use(self, action: Callable[[sqlite3.Connection], object]) -> None:
        """Do something with the open file, in one transaction; once that has failed, nothing."""
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

            print(f"Vectors are not cached: {self.path} cannot be used ({describe(error)}).", file=sys.stderr)
