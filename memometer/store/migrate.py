"""Copy a store into another while both are in use: again and again, until a pass finds nothing that has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from memometer.store.episode import Episode, StoreError, same_as
from memometer.store.protocol import Store

BATCH = 500
MOST_PASSES = 20


def migrate(source: Store, target: Store, *, progress: bool = True) -> int:
    """The number of episodes of `source`, all of which are in `target` then, with the same codes, uses and sources.

    What `target` has beside is left alone, and a migration that was stopped goes on where it was.
    Raises StoreError where vectors differ in kind, an id belongs to another text, or the source changes faster than it
    is copied.
    """
    from tqdm import tqdm

    if kind := source.vectors():
        target.declare(kind)
    for _ in range(MOST_PASSES):
        sizes = [source.size(scope) for scope in source.scopes()]
        total, changed = sum(size.episodes + size.archived for size in sizes), 0
        with tqdm(total=total, unit="episode", desc="migrating", disable=None if progress else True) as bar:
            for scope in source.scopes():
                with source.reading():
                    changed += copy(source.scan(scope), target, scope, progress=bar.update)
        if not changed:
            return total
    raise StoreError("the source changes faster than it is copied; stop what writes to it, and migrate again.")


def copy(
    episodes: Iterable[Episode], target: Store, scope: str, *, progress: Callable[[int], object] = lambda _: None
) -> int:
    """Bring a scope up to these episodes, which are of one moment, and say how many of them it did not have, or not as
    they are now."""
    archived: list[str] = []
    behind: list[Episode] = []
    changed = 0
    for batch in batches(episodes):
        ids = [episode.id for episode in batch]
        known = {episode.id: episode for episode in target.get(scope, ids)}
        for episode in batch:
            if there := known.get(episode.id):
                same_as(there, episode)
                if set(episode.sources) > set(there.sources) or episode.uses > there.uses:
                    behind.append(episode)
        new = [episode for episode in batch if episode.id not in known]
        if new:
            target.change(scope, add=[replace(episode, archived=False) for episode in new])
        gone = [e for e in batch if e.archived and not (e.id in known and known[e.id].archived)]
        archived += [episode.id for episode in gone]
        changed += len({episode.id for episode in (*new, *gone)})
        progress(len(batch))
    # Once all are there, and before any is archived: only what is not archived can be merged.
    for part in batches(behind):
        changed += _merge(target, scope, part)
    for ids in batches(archived):
        target.change(scope, archive=ids)
    return changed


def _merge(target: Store, scope: str, episodes: Sequence[Episode]) -> int:
    """Let episodes that are there stand for the others that they stand for now, and be used as often. How many it has
    changed: what the target itself has archived or merged since stays as it is there."""
    ids = [episode.id for episode in episodes]
    before = target.get(scope, ids)
    target.change(scope, merge={episode.id: episode.sources for episode in episodes if episode.sources})
    now = {episode.id: episode.uses for episode in target.get(scope, ids)}
    target.change(scope, uses={e.id: e.uses - now[e.id] for e in episodes if e.uses > now.get(e.id, e.uses)})
    return sum(was != is_now for was, is_now in zip(before, target.get(scope, ids), strict=False))


T = TypeVar("T")


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
