"""A store in ChromaDB collections, for one writer at a time.

Chroma has no BM25 and its vector index is approximate. Therefore a scope is read whole into this process and ranked
there like in every other store. It is read again when its change number differs; every change writes a new random
number. Chroma has no transactions: acknowledged episodes survive a kill, but a killed consolidation may be written in
part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import unquote, urlsplit

from memometer.store import url as store_url
from memometer.store.delegating_store import DelegatingStore
from memometer.store.episode import Episode, StoreError, VectorFormat, change_mark
from memometer.store.in_memory import InMemory, Scope
from memometer.store.protocol import DEFAULT_BITS, Change, Store

_BATCH = 1000
_NO_VECTOR = [1.0]  # Chroma requires a vector
_COLLECTIONS = ("memory_vectors", "memory_plain")


class Chroma(DelegatingStore):
    """Episodes in the collections `memory_…` of a Chroma folder or server.

    Args:
        client: client of the package chromadb.
        bits: bits per dimension of a new store's vectors, 2 or 4.
    """

    def __init__(self, client: Any, *, bits: int = DEFAULT_BITS) -> None:
        self.default_bits = bits
        self._client = client
        self._notes = self._collection("memory_notes")
        self._mirrors: dict[str, InMemory] = {}
        self._numbers: dict[str, dict[str, int]] = {}  # insertion order of each scope's episodes

    def _collection(self, name: str) -> Any:
        return self._client.get_or_create_collection(
            name, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )

    def _note(self, name: str) -> dict[str, Any]:
        found = self._notes.get(ids=[name])["metadatas"]
        return dict(found[0]) if found else {}

    def _set_note(self, name: str, **values: Any) -> None:
        self._notes.upsert(ids=[name], embeddings=[_NO_VECTOR], metadatas=[values])

    # ------------------------------------------------------------ metadata

    def vector_format(self) -> VectorFormat | None:
        note = self._note("vectors")
        return VectorFormat(note["encoder"], note["dimensions"], note["bits"]) if note else None

    def set_vector_format(self, vectors: VectorFormat) -> None:
        vectors.check_compatible(self.vector_format())
        self._set_note("vectors", **asdict(vectors))

    def scopes(self) -> list[str]:
        notes = self._notes.get(where={"kind": "scope"})["metadatas"]
        return sorted(note["scope"] for note in notes if self._mirror(note["scope"]).known[note["scope"]].episodes)

    def _changes(self, scope: str) -> int:
        return int(self._note(f"scope:{scope}").get("changes", 0))

    def _new_change(self, scope: str) -> int:
        changes = change_mark()
        self._set_note(f"scope:{scope}", kind="scope", scope=scope, changes=changes)
        return changes

    def source(self, scope: str) -> Store:
        return self._mirror(scope)

    def _mirror(self, scope: str) -> InMemory:
        """Return the present content of a scope."""
        changes = self._changes(scope)
        mirror = self._mirrors.get(scope)
        if mirror is None or mirror.size(scope).changes != changes:
            numbered: list[tuple[int, Episode]] = []
            for name in _COLLECTIONS:
                collection = self._collection(name)
                offset = 0
                while ids := (page := self._page(collection, scope, offset))["ids"]:
                    numbered += map(_read, page["metadatas"], page["documents"])
                    offset += len(ids)
            numbered.sort(key=lambda each: (each[0], each[1].id))
            mirror = self._mirrors[scope] = InMemory()
            self._numbers[scope] = {episode.id: number for number, episode in numbered}
            if numbered:
                mirror.change(scope, add=[episode for _, episode in numbered])
            mirror.known.setdefault(scope, Scope()).changes = changes
        mirror.kind = self.vector_format()
        return mirror

    @staticmethod
    def _page(collection: Any, scope: str, offset: int) -> Any:
        return collection.get(where={"scope": scope}, limit=_BATCH, offset=offset, include=["metadatas", "documents"])

    # ------------------------------------------------------------ writing

    def apply(self, scope: str, change: Change) -> list[bool]:
        mirror = self._mirror(scope)
        before_change = self._changes(scope)
        before = {
            id(episode): episode for episode in mirror.scan(scope)
        }  # keeps the objects alive, so that ids are unique
        new = mirror.apply(scope, change)
        del self._mirrors[scope]  # invalid until everything is written
        after = list(mirror.scan(scope))
        numbers = self._numbers[scope]
        next_number = 1 + max(numbers.values(), default=-1)  # numbers of deleted episodes are not used again
        numbers |= {e.id: next_number + n for n, e in enumerate(e for e in after if e.id not in numbers)}
        changed = [(numbers[episode.id], episode) for episode in after if id(episode) not in before]
        for start in range(0, len(changed), _BATCH):
            self._put(scope, changed[start : start + _BATCH], mirror.kind)
        is_only_writer = self._changes(scope) == before_change
        mirror.known[scope].changes = self._new_change(scope)
        if is_only_writer:
            self._mirrors[scope] = mirror
        return new

    def delete(self, scope: str, ids: Sequence[str] | None = None) -> int:
        known = [episode.id for episode in self.scan(scope) if ids is None or episode.id in ids]
        for start in range(0, len(known), _BATCH):
            keys = [json.dumps([scope, id]) for id in known[start : start + _BATCH]]
            for name in _COLLECTIONS:
                self._collection(name).delete(ids=keys)
        self._mirrors.pop(scope, None)
        self._new_change(scope)
        return len(known)

    def _put(self, scope: str, numbered: Sequence[tuple[int, Episode]], kind: VectorFormat | None) -> None:
        for name in _COLLECTIONS:
            part = [each for each in numbered if bool(each[1].codes) == (name == "memory_vectors")]
            if not part:
                continue
            vectors: Any = [_NO_VECTOR] * len(part)
            if name == "memory_vectors":
                if kind is None:
                    raise StoreError("the store has no vector format; call set_vector_format before storing codes.")
                vectors = kind.quantiser.levels(kind.quantiser.matrix([episode.codes for _, episode in part]))
            self._collection(name).upsert(
                ids=[json.dumps([scope, episode.id]) for _, episode in part],
                embeddings=vectors,
                documents=[episode.text for _, episode in part],
                metadatas=[{"scope": scope, "n": n, **_to_metadata(episode)} for n, episode in part],
            )

    def close(self) -> None:
        self._mirrors.clear()


def from_url(url: str) -> Chroma:
    """Open `chroma:///folder`, `chroma:////absolute/folder` or `chroma://host:port`, with the option `bits`."""
    try:
        import chromadb
        from chromadb.config import Settings
    except ImportError as error:
        raise StoreError("a chroma: store needs chromadb (480 MB installed); run pip install chromadb.") from error
    address = urlsplit(url)
    bits = store_url.options_of(url, {"bits": ("2", "4")})["bits"]
    path = unquote(address.path[1:])
    shown = store_url.without_password(url)
    if not (address.hostname or path):
        raise StoreError(f"invalid Chroma URL {shown}; expected chroma:///folder or chroma://host:port")
    settings = Settings(anonymized_telemetry=False)
    try:
        client: Any
        if address.hostname:
            client = chromadb.HttpClient(host=address.hostname, port=address.port or 8000, settings=settings)
        else:
            client = chromadb.PersistentClient(path=path, settings=settings)
        return Chroma(client, bits=int(bits))
    except Exception as error:  # Chroma raises ValueError and errors of its drivers
        raise StoreError(f"cannot open Chroma store {shown} ({error}); check that it exists.") from error


def _to_metadata(episode: Episode) -> dict[str, Any]:
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


def _read(metadata: Mapping[str, Any], text: str) -> tuple[int, Episode]:
    """Return an episode's number in insertion order, and the episode."""
    return int(metadata["n"]), Episode(
        id=metadata["episode"],
        text=text,
        at=float(metadata["at"]),
        importance=float(metadata["importance"]),
        uses=int(metadata["uses"]),
        codes=bytes.fromhex(metadata["codes"]),
        sources=tuple(json.loads(metadata["sources"])),
        archived=bool(metadata["archived"]),
        details=json.loads(metadata["details"]),
    )
