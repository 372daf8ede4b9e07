"""Copying of one store into another while both are in use, in passes until nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from memometer.run.progress import bar
from memometer.store.episode import Episode, StoreError, check_same
from memometer.store.protocol import Store

BATCH = 500
MAX_PASSES = 20
OWN_SCOPES = ("health:", "consolidations:")
"""Scopes with notes of a store about itself, which are not copied."""


def migrate(source: Store, target: Store, *, progress: bool = True) -> int:
    """Copy all episodes, with their codes, uses and sources. An interrupted migration can be repeated.

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
    for _ in range(MAX_PASSES):
        scopes = [scope for scope in source.scopes() if scope not in OWN_SCOPES]
        sizes = [source.size(scope) for scope in scopes]
        total, changed = sum(size.episodes + size.archived for size in sizes), 0
        with bar(total=total, unit="episode", desc="migrating") if progress else nullcontext() as shown:
            for scope in scopes:
                with source.snapshot():
                    ticks = {"progress": shown.update} if shown else {}
                    changed += copy(source.scan(scope), target, scope, **ticks)
        if not changed:
            return total
    raise StoreError("the source store changes faster than it can be copied; stop its writers and migrate again.")


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
