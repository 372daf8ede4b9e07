"""When to say that the memory does not hold the answer: what the reader says, whom it cites, and who said such things.

A question about one speaker whose answer the other one gave is how most of LOCOMO's unanswerable questions were made:
these signals are made for that artefact, and promise little for questions that nobody ever touched on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

TOP = 3  # turns of each side that the gap compares: an answer often has a turn before or after it


def named_speaker(question: str, speakers: Iterable[str]) -> str | None:
    """The one speaker that a question names; None where it names none, or more than one."""
    named = {speaker for speaker in set(speakers) if names(question, speaker)}
    return named.pop() if len(named) == 1 else None


def names(text: str, speaker: str) -> bool:
    """Whether a text names a person, by the first name at least."""
    first = speaker.split()[0] if speaker.split() else speaker
    return bool(first) and re.search(rf"\b{re.escape(first)}\b", text, re.IGNORECASE) is not None


def gap(scores: np.ndarray, is_named: Sequence[bool]) -> float | None:
    """Mean of the best scores of the other speaker's turns minus that of the named speaker's, in standard deviations
    of the question's scores, so that rankings of any scale compare; None where either said nothing."""
    mine = np.array(is_named, dtype=bool)
    if not mine.any() or mine.all():
        return None
    best = [float(np.sort(scores[side])[-TOP:].mean()) for side in (~mine, mine)]
    spread = float(scores.std())
    return (best[0] - best[1]) / spread if spread > 0 else 0.0
