"""ChromaDB, for those who have it: episodes with their vectors in its collections, one writer at a time.

Chroma ranks no words and its index is approximate, so a scope is read whole into this process and ranked as everywhere;
it is read again when a number that every change sets anew, kept beside the episodes, is another one. There are no
transactions: what was acknowledged is there after a kill, and of a consolidation that was killed a part may be.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np

from memometer.store.episode import Episode, Size, StoreError, Vectors
from memometer.store.in_memory import InMemory, Scope
from memometer.store.protocol import DEFAULT_BITS, Postings, Store
from memometer.store.url import without_password

_BATCH = 1000
_NO_VECTOR = [1.0]  # Chroma wants one of everything


class Chroma(Store):
    """Episodes in the collections `memory…` of a Chroma folder or server.

    Args:
        client: of chromadb.
        bits: a number of a vector, 2 or 4; of a new store.
    """

    def __init__(self, client: Any, *, bits: int = DEFAULT_BITS) -> None:
        self.default_bits = bits
        self._client = client
        self._notes = self._collection("memory_notes")
        self._mirrors: dict[str, InMemory] = {}
        self._numbers: dict[str, dict[str, int]] = {}  # of each scope's episodes, in the order of arrival

    def _collection(self, name: str) -> Any:
        return self._client.get_or_create_collection(
            name, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )

    def _noted(self, name: str) -> dict[str, Any]:
        found = self._notes.get(ids=[name])["metadatas"]
        return dict(found[0]) if found else {}

    def _note(self, name: str, **values: Any) -> None:
        self._notes.upsert(ids=[name], embeddings=[_NO_VECTOR], metadatas=[values])

    # ------------------------------------------------------------ what is known of it

    def vectors(self) -> Vectors | None:
        noted = self._noted("vectors")
        return Vectors(noted["encoder"], noted["dimensions"], noted["bits"]) if noted else None

    def declare(self, vectors: Vectors) -> None:
        self._note("vectors", **asdict(vectors.checked_against(self.vectors())))

    def scopes(self) -> list[str]:
        notes = self._notes.get(where={"kind": "scope"})["metadatas"]
        return sorted(note["scope"] for note in notes if self._mirror(note["scope"]).known[note["scope"]].episodes)

    def _changes(self, scope: str) -> int:
        return int(self._noted(f"scope:{scope}").get("changes", 0))

    def _mirror(self, scope: str) -> InMemory:
        """The scope as it is now."""
        changes = self._changes(scope)
        mirror = self._mirrors.get(scope)
        if mirror is None or mirror.size(scope).changes != changes:
            listed: list[tuple[int, Episode]] = []
            for name in ("memory_vectors", "memory_plain"):
                collection = self._collection(name)
                offset = 0
                while ids := (page := self._page(collection, scope, offset))["ids"]:
                    listed += map(_read, page["metadatas"], page["documents"])
                    offset += len(ids)
            listed.sort(key=lambda numbered: (numbered[0], numbered[1].id))
            mirror = self._mirrors[scope] = InMemory()
            self._numbers[scope] = {episode.id: number for number, episode in listed}
            if listed:
                mirror.change(scope, add=[episode for _, episode in listed])
            mirror.known.setdefault(scope, Scope()).changes = changes
        mirror.kind = self.vectors()
        return mirror

    @staticmethod
    def _page(collection: Any, scope: str, offset: int) -> Any:
        return collection.get(where={"scope": scope}, limit=_BATCH, offset=offset, include=["metadatas", "documents"])

    # ------------------------------------------------------------ writing

    def change(
        self,
        scope: str,
        add: Sequence[Episode] = (),
        archive: Sequence[str] = (),
        uses: Mapping[str, int] | None = None,
        merge: Mapping[str, Sequence[str]] | None = None,
    ) -> list[bool]:
        mirror = self._mirror(scope)
        seen = self._changes(scope)
        before = list(mirror.scan(scope))
        new = mirror.change(scope, add, archive, uses, merge)
        del self._mirrors[scope]  # it is believed again once all of it is written
        after = list(mirror.scan(scope))
        known = {id(episode) for episode in before}
        numbers = self._numbers[scope]
        following = 1 + max(numbers.values(), default=-1)  # however many were removed before
        numbers |= {e.id: following + n for n, e in enumerate(e for e in after if e.id not in numbers)}
        changed = [(numbers[episode.id], episode) for episode in after if id(episode) not in known]
        for start in range(0, len(changed), _BATCH):
            self._put(scope, changed[start : start + _BATCH], mirror.kind)
        alone = self._changes(scope) == seen
        mirror.known[scope].changes = self._note_change(scope)
        if alone:
            self._mirrors[scope] = mirror
        return new

    def _note_change(self, scope: str) -> int:
        changes = 1 + secrets.randbelow(2**53)
        self._note(f"scope:{scope}", kind="scope", scope=scope, changes=changes)
        return changes

    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        known = [episode.id for episode in self.scan(scope) if ids is None or episode.id in ids]
        for start in range(0, len(known), _BATCH):
            keys = [json.dumps([scope, id]) for id in known[start : start + _BATCH]]
            for name in ("memory_vectors", "memory_plain"):
                self._collection(name).delete(ids=keys)
        self._mirrors.pop(scope, None)
        self._note_change(scope)
        return len(known)

    def _put(self, scope: str, numbered: Sequence[tuple[int, Episode]], kind: Vectors | None) -> None:
        for name in ("memory_vectors", "memory_plain"):
            part = [each for each in numbered if bool(each[1].codes) == (name == "memory_vectors")]
            if not part:
                continue
            vectors: Any = [_NO_VECTOR] * len(part)
            if name == "memory_vectors":
                if kind is None:
                    raise StoreError("vectors cannot be stored before it is said what they are; call declare first.")
                vectors = kind.quantiser.levels(kind.quantiser.matrix([episode.codes for _, episode in part]))
            self._collection(name).upsert(
                ids=[json.dumps([scope, episode.id]) for _, episode in part],
                embeddings=vectors,
                documents=[episode.text for _, episode in part],
                metadatas=[{"scope": scope, "n": n, **_written(episode)} for n, episode in part],
            )

    # ------------------------------------------------------------ reading

    def size(self, scope: str) -> Size:
        return self._mirror(scope).size(scope)

    def get(self, scope: str, ids: Sequence[str]) -> list[Episode]:
        return self._mirror(scope).get(scope, ids)

    def scan(self, scope: str) -> Iterator[Episode]:
        return self._mirror(scope).scan(scope)

    def postings(self, scope: str, words: Sequence[str]) -> Postings:
        return self._mirror(scope).postings(scope, words)

    def nearest(self, scope: str, query: np.ndarray, k: int) -> list[int]:
        return self._mirror(scope).nearest(scope, query, k)

    def newest(self, scope: str, k: int, before: tuple[float, str] | None = None) -> list[int]:
        return self._mirror(scope).newest(scope, k, before)

    def around(self, scope: str, rows: Sequence[int], reach: int) -> dict[int, list[int]]:
        return self._mirror(scope).around(scope, rows, reach)

    def rows(self, scope: str, rows: Sequence[int]) -> dict[int, Episode]:
        return self._mirror(scope).rows(scope, rows)

    def ids(self, scope: str, rows: Sequence[int]) -> list[str]:
        return self._mirror(scope).ids(scope, rows)

    def close(self) -> None:
        self._mirrors.clear()


def from_url(url: str) -> Chroma:
    """`chroma:///folder`, `chroma:////absolute/folder`, or `chroma://host:port` of a server; `bits` behind the `?`."""
    try:
        import chromadb
        from chromadb.config import Settings
    except ImportError as error:
        raise StoreError("a chroma: store needs chromadb (480 MB with what it needs): pip install chromadb.") from error
    address = urlsplit(url)
    bits = dict(parse_qsl(address.query)).get("bits", str(DEFAULT_BITS))
    path = unquote(address.path[1:])
    if bits not in ("2", "4") or not (address.hostname or path):
        raise StoreError(
            f"{without_password(url)!r} names no Chroma; write chroma:///folder or chroma://host:port, bits=2 or 4."
        )
    settings = Settings(anonymized_telemetry=False)
    try:
        client: Any
        if address.hostname:
            client = chromadb.HttpClient(host=address.hostname, port=address.port or 8000, settings=settings)
        else:
            client = chromadb.PersistentClient(path=str(Path(path)), settings=settings)
        return Chroma(client, bits=int(bits))
    except Exception as error:  # Chroma raises ValueError, its own and its drivers' errors
        raise StoreError(
            f"{without_password(url)!r} cannot be opened as a Chroma store ({error}); see that it is there."
        ) from error


def _written(episode: Episode) -> dict[str, Any]:
    return {
        "episode": episode.id,
        "at": episode.at,
        "importance": episode.importance,
        "uses": episode.uses,
        "archived": episode.archived,
        "codes": episode.codes.hex(),
        "sources": json.dumps(episode.sources),
        "details": json.dumps(dict(episode.details)),
    }


def _read(known: Mapping[str, Any], text: str) -> tuple[int, Episode]:
    return int(known["n"]), Episode(
        id=known["episode"],
        text=text,
        at=float(known["at"]),
        importance=float(known["importance"]),
        uses=int(known["uses"]),
        codes=bytes.fromhex(known["codes"]),
        sources=tuple(json.loads(known["sources"])),
        archived=bool(known["archived"]),
        details=json.loads(known["details"]),
    )
