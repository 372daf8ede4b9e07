"""Detect result files in which failed questions were run again and merged with the first run.

Suppose that the choice of the `n` of `N` questions that were run again is independent of correctness. Then the `w`
incorrect answers fall on those `n` as on any other `n`. The probability that at least as many of them do is
hypergeometric; if every answer outside the subset is correct, it is C(N - w, n - w) / C(N, n). An honest run with
accuracy 80 % and a tenth of the questions repeated (for example after errors) leaves about 277 other answers wrong. If
every other answer is correct and the probability times the number of subsets is below one in a million, the failures
were selectively re-run.

The subsets are: questions that the file lists somewhere; entries that a field with a name such as `retry` marks; and
the entries after each place where the order of the file restarts. A subset without any correct answer may be a list of
failures or a file sorted by verdict, so it counts only if its name says that it was re-run. A merge without any of
these signs is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import exp, lgamma, log, log10
from typing import Any

from memometer.judging.graders import graders_of, score
from memometer.run.folder import Record, latest

MOST_CHANCE = -6.0
"""A subset is flagged if log10 of its probability is below this."""

_SECOND_TRY = re.compile(
    r"merg|re[-_ ]?(run|ask|do|gen|judge)|retr(y|ies|ied)|again|attempt|trial|patch|replac|batch|(^|_)run(_?id)?($|\W)",
    re.IGNORECASE,
)
_MOST_VALUES = 6
"""A field with more values than this marks no subset."""
_MOST_RESTARTS = 20
"""A file whose order restarts more often than this has no order."""


@dataclass(frozen=True, slots=True)
class Subset:
    """Entries that may come from another run.

    Attributes:
        sign: How they are recognised, as a clause.
        places: Their positions in the file.
        declared: True if the file itself says that they were re-run.
    """

    sign: str
    places: frozenset[int]
    declared: bool = False


@dataclass(frozen=True, slots=True)
class Merge:
    """The result for one subset.

    Attributes:
        sign: How the subset is recognised, as a clause.
        flagged: True if failures were selectively re-run. Otherwise a part was re-run, not only because it failed.
        asked_again: Number of entries in the subset.
        asked_again_correct: Number of correct ones among them.
        untouched: Number of other entries.
        untouched_correct: Number of correct ones among them.
        log10_chance: log10 of the probability that chance puts as many incorrect answers into the subset.
    """

    sign: str
    flagged: bool
    asked_again: int
    asked_again_correct: int
    untouched: int
    untouched_correct: int
    log10_chance: float

    def __str__(self) -> str:
        chance = f"{10**self.log10_chance:.2g}" if self.log10_chance > -4 else f"10^{self.log10_chance:.0f}"
        counts = (
            f"{self.asked_again_correct:,} of {self.asked_again:,} re-run answers are correct, and "
            f"{self.untouched_correct:,} of {self.untouched:,} others; probability by chance {chance}; "
            f"{self.sign}"
        )
        if self.flagged:
            return f"MERGED: failures were selectively re-run, and every other answer is correct ({counts})."
        return f"Partly re-run ({counts})."

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "said": str(self)}


def merges(correct: Sequence[bool], subsets: Sequence[Subset]) -> list[Merge]:
    """Test the subsets of a file.

    Args:
        correct: Whether each answer of the file is correct; an answer without a verdict is not.
        subsets: The subsets.

    Returns:
        The results, flagged ones first. Of undeclared subsets only flagged results are returned.
    """
    found = []
    flagged: list[frozenset[int]] = []
    for subset in sorted(subsets, key=lambda subset: (not subset.declared, len(subset.places))):
        again = [correct[i] for i in sorted(subset.places)]
        others = [right for i, right in enumerate(correct) if i not in subset.places]
        if not again or not others or not (subset.declared or any(again)):
            continue
        chance = log10_chance(len(correct), len(again), correct.count(False), again.count(False))
        merged = all(others) and chance + log10(len(subsets)) < MOST_CHANCE
        if merged and any(smaller <= subset.places for smaller in flagged):
            continue  # it contains a subset that is flagged already
        if merged:
            flagged.append(subset.places)
        if merged or subset.declared:
            found.append(Merge(subset.sign, merged, len(again), sum(again), len(others), sum(others), round(chance, 1)))
    return sorted(found, key=lambda merge: not merge.flagged)


def log10_chance(everything: int, drawn: int, marked: int, at_least: int) -> float:
    """Return log10 of the probability that a random draw has at least `at_least` of the `marked` items.

    `drawn` items are drawn from `everything` without replacement."""

    def choose(n: int, k: int) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    terms = [
        choose(marked, k) + choose(everything - marked, drawn - k) - choose(everything, drawn)
        for k in range(max(at_least, drawn + marked - everything), min(drawn, marked) + 1)
    ]
    top = max(terms)
    return min(0.0, (top + log(sum(exp(term - top) for term in terms))) / log(10))


def subsets(content: Any, entries: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> list[Subset]:
    """Find every subset of entries that may come from another run.

    Args:
        content: The file.
        entries: Its entries, in order.
        ids: Their ids.
    """
    return [*_listed(content, ids), *_set_apart(entries), *_after_a_restart(ids)]


def _listed(content: Any, ids: Sequence[str]) -> Iterator[Subset]:
    place = {id: i for i, id in enumerate(ids)}
    for where, names in _lists(content):
        if len(names) < len(ids) and all(name in place for name in names):
            places = frozenset(place[name] for name in names)
            yield Subset(f"{where} lists them", places, declared=bool(_SECOND_TRY.search(where)))


def _lists(value: Any, where: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield lists of strings, and strings of names with commas or spaces between them, with their paths."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _lists(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        yield where, value
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict | list):
                yield from _lists(inner, where)
    elif isinstance(value, str) and (names := re.split(r"[,\s]+", value.strip(", \n")))[1:]:
        yield where, names


def _set_apart(entries: Sequence[Mapping[str, Any]]) -> Iterator[Subset]:
    names = sorted({name for entry in entries for name in entry if _SECOND_TRY.search(name)})
    for name in names:
        values = [_simple(entry[name]) if name in entry else "missing" for entry in entries]
        if 2 <= len(set(values)) <= _MOST_VALUES:
            for value in sorted(set(values)):
                yield Subset(f"their {name} is {value}", frozenset(i for i, own in enumerate(values) if own == value))


def _simple(value: Any) -> str:
    """A simple value as text; of any other value the name of its type."""
    return repr(value) if value is None or isinstance(value, bool | int | str) else type(value).__name__


def _after_a_restart(ids: Sequence[str]) -> Iterator[Subset]:
    """Yield the entries after each position where the ids, which rise as numbers or as text, restart."""
    numbers = [[int(number) for number in re.findall(r"\d+", id)] for id in ids]
    restarts = min(
        [i for i in range(1, len(ids)) if numbers[i] < numbers[i - 1]],
        [i for i in range(1, len(ids)) if ids[i] < ids[i - 1]],
        key=len,
    )
    if len(restarts) <= _MOST_RESTARTS:
        for start in restarts:
            yield Subset(f"the order of the file restarts at {ids[start]}", frozenset(range(start, len(ids))))


def of_records(records: Iterable[Record]) -> list[str]:
    """Find signs that failed questions of one of our own runs were run again and merged.

    The subsets are the answers of repeated attempts, those after the longest pause of the run, and those after a place
    where the order of the questions restarts.

    Args:
        records: The records of a run in the order of their file, with their verdicts.

    Returns:
        A sentence for each system and budget with such a sign.
    """
    listed = list(records)
    counting = {id(record) for record in latest(listed).values()}
    graders = graders_of(listed)[:1]
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in listed:
        if id(record) in counting and record["answer"] is not None and graders:
            groups.setdefault((record["system"], record["budget_tokens"]), []).append(record)
    found = []
    for (system, _), group in groups.items():
        correct = [bool(score(record, graders[0], rule="majority")) for record in group]
        marked = [{"attempt": record["attempt"]} for record in group]
        ids = [record["question_id"] for record in group]
        signs = [*_set_apart(marked), *_after_a_restart(ids), *_after_a_pause([record.get("at") for record in group])]
        found += [f"{system}: {merge}" for merge in merges(correct, signs) if merge.flagged]
    return found


_LONGEST_PAUSE = 3600.0
"""Seconds between two answers of a run; a resumed run may have longer ones."""


def _after_a_pause(times: Sequence[float | None]) -> Iterator[Subset]:
    known = [time for time in times if time is not None]
    if len(known) < len(times) or len(known) < 2:
        return
    pauses = [later - earlier for earlier, later in pairwise(known)]
    longest = max(range(len(pauses)), key=lambda i: pauses[i])
    if pauses[longest] > _LONGEST_PAUSE:
        places = frozenset(range(longest + 1, len(known)))
        yield Subset("they were answered after the longest pause of the run", places)
