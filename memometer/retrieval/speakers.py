"""The speaker that a question names, and the fit of the question to the other speaker's turns.

Most of LOCOMO's unanswerable questions ask about one speaker what the other one said. These signals detect that.
They help little with questions about things that nobody mentioned.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from memometer.retrieval.tokenize import mentions

TOP = 3  # best turns of each side that are compared: an answer often has a turn before or after it


def named_speaker(question: str, speakers: Iterable[str]) -> str | None:
    """Return the one speaker that a question names, or None if it names nobody or several."""
    named = {speaker for speaker in set(speakers) if mentions(question, speaker)}
    return named.pop() if len(named) == 1 else None


def speaker_gap(scores: np.ndarray, is_named: np.ndarray | list[bool]) -> float | None:
    """Return the mean of the other speaker's best scores minus that of the named speaker's best scores.

    Args:
        scores: the ranking scores of one question, shape (turns,).
        is_named: for each turn, True if the named speaker said it.

    Returns:
        The gap in standard deviations of `scores`, so that rankings of any scale compare; None if one side has no
        turns.
    """
    mine = np.asarray(is_named, dtype=bool)
    if not mine.any() or mine.all():
        return None
    others, own = (float(np.sort(scores[side])[-TOP:].mean()) for side in (~mine, mine))
    spread = float(scores.std())
    return (others - own) / spread if spread > 0 else 0.0
