"""Copy a store into another while both are in use: again and again, until a pass finds nothing that has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from stores.episode import Episode, StoreError, same_as
from stores.store import Store

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
                changed += copy(source.scan(scope), target, scope, progress=bar.update)
        if not changed:
            return total
    raise StoreError("the source changes faster than it is copied; stop what writes to it, and migrate again.")


def copy(
    episodes: Iterable[Episode], target: Store, scope: str, *, progress: Callable[[int], object] = lambda _: None
) -> int:
    """Bring a scope up to these episodes, and say how many of them it did not have, or not as they are now."""
    archived: list[str] = []
    changed = 0
    for batch in batches(episodes):
        behind = _behind(target, scope, batch)
        _copy(target, scope, behind)
        archived += [episode.id for episode in behind if episode.archived]
        changed += len(behind)
        progress(len(batch))
    for ids in batches(archived):  # last, for only what is not archived can be merged
        target.change(scope, archive=ids)
    return changed


def _behind(target: Store, scope: str, batch: Sequence[Episode]) -> list[Episode]:
    """The episodes that are not in the target, or not yet as archived, used and merged."""
    known = {episode.id: episode for episode in target.get(scope, [episode.id for episode in batch])}
    found = []
    for episode in batch:
        there = known.get(episode.id)
        if there is None:
            found.append(episode)
            continue
        same_as(there, episode)
        merged = set(episode.sources) > set(there.sources) and not there.archived
        if merged or (episode.archived and not there.archived) or episode.uses > there.uses:
            found.append(episode)
    return found


def _copy(target: Store, scope: str, episodes: Sequence[Episode]) -> None:
    target.change(scope, add=episodes)
    target.change(scope, merge={episode.id: episode.sources for episode in episodes if episode.sources})
    now = {episode.id: episode.uses for episode in target.get(scope, [episode.id for episode in episodes])}
    target.change(scope, uses={e.id: e.uses - now[e.id] for e in episodes if e.uses > now[e.id]})


T = TypeVar("T")


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
