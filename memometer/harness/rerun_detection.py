"""Whether a file of answers holds more than one run: failures asked again, and merged with what went well at first.

If which questions were asked again had nothing to do with whether they were right, the `w` answers that are not correct
would fall on the `n` of `N` that were asked again as on any `n`. The probability that as many of them or more do is
hypergeometric; that all of them do, so that every untouched answer is correct, is C(N - w, n - w) / C(N, n). An honest
run of accuracy 80 % with a tenth asked again (lost to errors, say) leaves about 277 untouched answers wrong. Where
every untouched answer is correct and that probability, times the subsets looked at, is below one in a million, the
failures were asked again.

Subsets looked at: questions that the file lists somewhere; entries that a field named after a second try sets apart;
and entries from where the order of the file begins anew. Where such a subset holds no correct answer it may as well be
a list of failures, or a file sorted by verdict, and is passed over unless its name says that it was asked again. A
merge that leaves none of these marks is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, lgamma, log, log10
from typing import Any

MOST_CHANCE = -6.0
"""log10 of the probability from which on nothing is flagged."""

_SECOND_TRY = re.compile(
    r"merg|re[-_ ]?(run|ask|do|gen|judge)|retr(y|ies|ied)|again|attempt|trial|patch|replac|batch|(^|_)run(_?id)?($|\W)",
    re.IGNORECASE,
)
_MOST_VALUES = 6
"""A field of more values than this sets nothing apart."""
_MOST_RESTARTS = 20
"""A file whose order begins anew more often than this has none."""


@dataclass(frozen=True, slots=True)
class Subset:
    """Entries, by place in the file, that may be of another run; `sign` says how they are known, as a clause, and
    `declared` that the file itself says so."""

    sign: str
    places: frozenset[int]
    declared: bool = False


@dataclass(frozen=True, slots=True)
class Merge:
    """What a subset says. `flagged`: failures were asked again. Otherwise a part was, and not for its outcome alone.

    `log10_chance` is the probability that chance alone put as many of the answers that are not correct into it.
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
            f"{self.asked_again_correct:,} of the {self.asked_again:,} asked again are correct and "
            f"{self.untouched_correct:,} of the {self.untouched:,} others; by chance with probability {chance}; "
            f"{self.sign}"
        )
        if self.flagged:
            return f"MERGED: failures were asked again, and every untouched answer is correct ({counts})."
        return f"Partly asked again ({counts})."

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "said": str(self)}


def merges(correct: Sequence[bool], subsets: Sequence[Subset]) -> list[Merge]:
    """What the subsets of a file say, the flagged first; of undeclared ones only the flagged.

    `correct` is by place in the file; what was left ungraded is not correct.
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
            continue  # the same sign again, blurred
        if merged:
            flagged.append(subset.places)
        if merged or subset.declared:
            found.append(Merge(subset.sign, merged, len(again), sum(again), len(others), sum(others), round(chance, 1)))
    return sorted(found, key=lambda merge: not merge.flagged)


def log10_chance(everything: int, drawn: int, marked: int, at_least: int) -> float:
    """log10 of the hypergeometric probability that `drawn` of `everything` hold `at_least` or more of the `marked`."""

    def choose(n: int, k: int) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    terms = [
        choose(marked, k) + choose(everything - marked, drawn - k) - choose(everything, drawn)
        for k in range(max(at_least, drawn + marked - everything), min(drawn, marked) + 1)
    ]
    top = max(terms)
    return min(0.0, (top + log(sum(exp(term - top) for term in terms))) / log(10))


def subsets(content: Any, entries: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> list[Subset]:
    """Every subset of a file's entries that may be of another run; `ids` are the entries' own, in the file's order."""
    return [*_listed(content, ids), *_set_apart(entries), *_after_a_restart(ids)]


def _listed(content: Any, ids: Sequence[str]) -> Iterator[Subset]:
    place = {id: i for i, id in enumerate(ids)}
    for where, names in _lists(content):
        if len(names) < len(ids) and all(name in place for name in names):
            places = frozenset(place[name] for name in names)
            yield Subset(f"{where} lists them", places, declared=bool(_SECOND_TRY.search(where)))


def _lists(value: Any, where: str = "") -> Iterator[tuple[str, list[str]]]:
    """Lists of strings, and strings with commas or spaces between names, anywhere in a file."""
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
    """A simple value as text; of another its kind."""
    return repr(value) if value is None or isinstance(value, bool | int | str) else type(value).__name__


def _after_a_restart(ids: Sequence[str]) -> Iterator[Subset]:
    """The entries from each place on where the ids, which rise as numbers or as text, fall back."""
    numbers = [[int(number) for number in re.findall(r"\d+", id)] for id in ids]
    restarts = min(
        [i for i in range(1, len(ids)) if numbers[i] < numbers[i - 1]],
        [i for i in range(1, len(ids)) if ids[i] < ids[i - 1]],
        key=len,
    )
    if len(restarts) <= _MOST_RESTARTS:
        for start in restarts:
            yield Subset(f"the file's order begins anew at {ids[start]}", frozenset(range(start, len(ids))))
