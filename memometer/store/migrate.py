"""Copying of one store into another while both are in use, in passes until nothing changes."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from memometer.run.progress import bar
from memometer.store.episode import VERSIONS, Episode, StoreError, check_same
from memometer.store.protocol import Store

BATCH = 500
MAX_PASSES = 20
_HASH_BYTES = 8
MIGRATIONS = "migrations:"
"""The scope that notes which ids came from which store, so that a repeated migration deletes what was deleted there."""

OWN_SCOPES = ("health:", "consolidations:", "jobs:", MIGRATIONS)
"""Scopes with notes of a store about itself, which are not copied."""


def migrate(source: Store, target: Store, *, progress: bool = True) -> int:
    """Copy all episodes, with their codes, uses and sources. An interrupted migration can be repeated.

    A repeated migration also deletes what was deleted in the source since, if the source has an identity. A memory
    with the name of a memory that the target has itself is added to that one.

    Args:
        source: store to read.
        target: store to write. Its other episodes are kept.
        progress: show the progress on standard error.

    Returns:
        The number of episodes in `source`.

    Raises:
        StoreError: the vector formats differ, an id belongs to another text, or `source` changes faster than it can be
            copied.
    """
    if kind := source.vector_format():
        target.set_vector_format(kind)
    notes = _Notes(target, source.identity)
    for _ in range(MAX_PASSES):
        scopes = [scope for scope in source.scopes() if scope not in OWN_SCOPES]
        sizes = [source.size(scope) for scope in scopes]
        total, changed = sum(size.episodes + size.archived for size in sizes), 0
        places, own = _places(source, target, notes)
        with bar(total=total, unit="episode", desc="migrating") if progress else nullcontext() as shown:
            ticks = {"progress": shown.update} if shown else {}
            for scope in sorted(scopes, key=_is_registry):  # a memory is listed when its turns are there
                place, skipped = places.get(scope, scope), own.get(scope, frozenset())
                with source.snapshot():
                    ids = [episode.id for episode in source.scan(scope) if episode.id not in skipped]
                    deleted = notes.update(scope, place, ids)
                    if deleted:
                        changed += target.delete(place, deleted)
                    found = (episode for episode in source.scan(scope) if episode.id not in skipped)
                    changed += copy(found, target, place, **ticks)
        changed += notes.delete_other_scopes(scopes)
        if not changed:
            return total
    raise StoreError("the source store changes faster than it can be copied; stop its writers and migrate again.")


def _is_registry(scope: str) -> bool:
    return scope.startswith("tenant:") and "/" not in scope


def _places(source: Store, target: Store, notes: _Notes) -> tuple[dict[str, str], dict[str, frozenset[str]]]:
    """Compare the lists of memories of both stores.

    Entries of the target that came from the source and have another scope there, because the memory was replaced, are
    deleted, so that they are copied again.

    Returns:
        The scope in the target of each scope of the source whose memory the target has itself, and the ids of these
        memories by registry.
    """
    places, own = dict[str, str](), dict[str, frozenset[str]]()
    for registry in filter(_is_registry, source.scopes()):
        entries = list(source.scan(registry))
        known = {episode.id: episode for episode in target.get(registry, [entry.id for entry in entries])}
        skipped = set()
        for entry in entries:
            present = known.get(entry.id)
            if present is None or present.details.get("scope") == entry.details.get("scope"):
                continue
            if notes.has(registry, entry.id):
                target.delete(registry, [entry.id])
            else:
                places[str(entry.details["scope"])] = str(present.details["scope"])
                skipped.add(entry.id)
        own[registry] = frozenset(skipped)
    return places, own


class _Notes:
    """The ids in a target that came from a source, as hashes, by scope.

    Args:
        target: holds the notes.
        source: identity of the source; without one nothing is noted.
    """

    def __init__(self, target: Store, source: str) -> None:
        self._target, self._source = target, source
        found = target.scan(MIGRATIONS) if source else ()
        self._notes = {str(e.details["scope"]): e for e in found if e.details["source"] == source}

    def has(self, scope: str, id: str) -> bool:
        """Return True if an id of a scope came from the source."""
        return _hash(id) in self._hashes(scope)

    def update(self, scope: str, place: str, ids: Sequence[str]) -> list[str]:
        """Note the ids of a scope before they are copied; return those in the target that the source has deleted."""
        if not self._source:
            return []
        before, present = self._hashes(scope), {_hash(id) for id in ids}
        gone = before - present
        if before != present:
            packed = base64.b85encode(zlib.compress(b"".join(sorted(present)))).decode()
            details = {"source": self._source, "scope": scope, "place": place, "ids": packed}
            self._notes[scope] = Episode(f"{self._source}:{scope}", "", 0.0, details=details)
        deleted = [e.id for e in self._target.scan(place) if _hash(e.id) in gone] if gone else []
        if before != present:
            self._target.replace(MIGRATIONS, self._notes[scope])
        return deleted

    def delete_other_scopes(self, scopes: Sequence[str]) -> int:
        """Delete what came from scopes that the source has no more; return the number of deleted episodes."""
        deleted = 0
        for scope in self._notes.keys() - set(scopes):
            note = self._notes.pop(scope)
            place, hashes = str(note.details["place"]), _unpacked(note)
            for batch in batches([e.id for e in self._target.scan(place) if _hash(e.id) in hashes]):
                deleted += self._target.delete(place, batch)
            self._target.delete(MIGRATIONS, [note.id])
        return deleted

    def _hashes(self, scope: str) -> set[bytes]:
        return _unpacked(self._notes[scope]) if scope in self._notes else set()


def _hash(id: str) -> bytes:
    return hashlib.blake2b(id.encode(errors="surrogatepass"), digest_size=_HASH_BYTES).digest()


def _unpacked(note: Episode) -> set[bytes]:
    joined = zlib.decompress(base64.b85decode(str(note.details["ids"])))
    return {joined[start : start + _HASH_BYTES] for start in range(0, len(joined), _HASH_BYTES)}


def copy(
    episodes: Iterable[Episode], target: Store, scope: str, *, progress: Callable[[int], object] = lambda _: None
) -> int:
    """Update a scope of a store to a snapshot of episodes.

    Args:
        episodes: all episodes of a scope, from a single snapshot.
        target: store to write.
        scope: scope to write; its other episodes are kept.
        progress: called with the number of episodes done since the last call.

    Returns:
        The number of episodes that were missing or outdated.
    """
    archived: list[str] = []
    behind: list[Episode] = []
    changed = 0
    for batch in batches(episodes):
        ids = [episode.id for episode in batch]
        known = {episode.id: episode for episode in target.get(scope, ids)}
        for episode in batch:
            if present := known.get(episode.id):
                if _versions(episode) > _versions(present):  # its text was replaced meanwhile
                    target.replace(scope, episode)
                    changed += 1
                    continue
                check_same(present, episode)
                if set(episode.sources) > set(present.sources) or episode.uses > present.uses:
                    behind.append(episode)
        new = [episode for episode in batch if episode.id not in known]
        if new:
            target.change(scope, add=[replace(episode, archived=False) for episode in new])
        gone = [e for e in batch if e.archived and not (e.id in known and known[e.id].archived)]
        archived += [episode.id for episode in gone]
        changed += len({episode.id for episode in (*new, *gone)})
        progress(len(batch))
    # After all are stored and before any is archived, because archived episodes cannot be merged.
    for part in batches(behind):
        changed += _merge(target, scope, part)
    for ids in batches(archived):
        target.change(scope, archive=ids)
    return changed


def _versions(episode: Episode) -> int:
    return int(episode.details.get(VERSIONS, 0))


def _merge(target: Store, scope: str, episodes: Sequence[Episode]) -> int:
    """Update sources and uses of stored episodes and return how many changed. Episodes that the target has archived or
    merged itself keep its state."""
    ids = [episode.id for episode in episodes]
    before = target.get(scope, ids)
    target.change(scope, merge={episode.id: episode.sources for episode in episodes if episode.sources})
    now = {episode.id: episode.uses for episode in target.get(scope, ids)}
    target.change(scope, uses={e.id: e.uses - now[e.id] for e in episodes if e.uses > now.get(e.id, e.uses)})
    return sum(was != is_now for was, is_now in zip(before, target.get(scope, ids), strict=False))


T = TypeVar("T")


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield lists of up to `BATCH` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
