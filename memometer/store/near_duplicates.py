"""Which episodes may be merged or forgotten."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import numpy as np

from memometer.retrieval import dates
from memometer.retrieval.tokenize import STOP_WORDS, terms
from memometer.store import deadline
from memometer.store.episode import Episode
from memometer.store.hybrid_scoring import DAY, Weights
from memometer.store.quantise import Quantiser

_BLOCK = 1024  # episodes compared at a time
_TOKEN = re.compile(r"[^\W_]+(?:[.,:/'’-][^\W_]+)*")
_NEGATION = re.compile(r"\b(?:no|not|never|none|nobody|nothing|neither|nor|without|\w+n['’]t)\b", re.IGNORECASE)
_NUMBER_WORDS = frozenset(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million first second third
    once twice half""".split()
)


def facts_of(episode: Episode) -> tuple[object, ...]:
    """Return what two episodes must share to be merged: speaker, numbers, names, dates and negations.

    A text in a script without capital letters has no recognisable names; all its terms count.
    """
    speaker, separator, text = episode.text.partition(": ")
    if not separator or len(speaker) > 64:
        speaker, text = "", episode.text
    numbers, names = [], []
    is_start = True
    for match in _TOKEN.finditer(text):
        token = match[0]
        if any(map(str.isdigit, token)) or token.lower() in _NUMBER_WORDS:
            numbers.append(token.lower())
        elif token[0].isupper() and not is_start and token.lower() not in STOP_WORDS:
            names.append(token.lower())
        elif not token.isascii() and token.lower() == token.upper():
            names += terms(token)
        is_start = text[match.end() : match.end() + 1] in (".", "!", "?")
    mentioned = sorted((when.start, when.end) for when in dates.find(text, _day_of(episode)))
    return speaker, sorted(numbers), sorted(names), mentioned, len(_NEGATION.findall(text))


def _day_of(episode: Episode) -> date:
    """Return the local date of an episode."""
    offset = float(episode.details.get("offset", 0.0))
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=episode.at + offset)).date()


def has_decayed(weights: Weights, episode: Episode, at: float) -> bool:
    """Return True if an episode should be forgotten at a time in Unix seconds."""
    if weights.prune_below is None:
        return False
    days = (at - episode.at) / DAY
    return (
        days > weights.prune_after_days
        and episode.uses < weights.prune_uses
        and episode.importance * weights.decay**days < weights.prune_below
    )


def near_duplicates(quantiser: Quantiser, episodes: Sequence[Episode], above: float) -> list[list[Episode]]:
    """Return groups of two or more episodes that say the same as the first of the group.

    Their cosine with it is above a threshold, and they have the same facts. The first of a group has the longest text.
    Each episode is in at most one group: longer texts choose first; ties are broken by the smaller id.

    Args:
        quantiser: of the episodes' codes.
        episodes: the episodes.
        above: cosine of the full vectors. The codes' cosine is compared with its expectation for this value.
    """
    above = quantiser.code_cosine(above)
    order = sorted((episode for episode in episodes if episode.codes), key=lambda e: (-len(e.text), e.id))
    codes = quantiser.matrix([episode.codes for episode in order])
    norms = quantiser.norms(codes)
    starts = range(0, len(order), _BLOCK)
    groups: dict[int, list[int]] = {}
    taken = np.zeros(len(order), bool)
    for start in starts:
        levels = quantiser.levels(codes[start : start + _BLOCK])
        deadline.check()
        for other in starts[start // _BLOCK :]:  # the block itself comes first and decides which of it are taken
            products = levels @ quantiser.levels(codes[other : other + _BLOCK]).T
            near = products / np.outer(norms[start : start + _BLOCK], norms[other : other + _BLOCK]) > above
            near = np.triu(near, 1) if other == start else near
            for row in np.flatnonzero(near.any(axis=1)).tolist():
                if not taken[start + row]:
                    candidates = other + np.flatnonzero(near[row] & ~taken[other : other + _BLOCK])
                    first = facts_of(order[start + row])
                    chosen = np.array([n for n in candidates.tolist() if facts_of(order[n]) == first], np.int64)
                    groups.setdefault(start + row, []).extend(chosen.tolist())
                    taken[chosen] = True
    return [[order[n], *(order[other] for other in others)] for n, others in sorted(groups.items()) if others]
